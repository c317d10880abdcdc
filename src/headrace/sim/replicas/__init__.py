"""One partition's replicas in a small world of their own: the real machines of ``core.replica``, one to five brokers, a coordinator and a
controller as models, disks, connections and faults drawn from a seed. Much smaller than the simulator of whole brokers, so it runs a hundred times
as many seeds.

``python -m headrace.sim.replicas --seeds 0-20000`` sweeps, ``--mutants`` hunts the planted bugs.
"""
