"""The formation of clusters in a small world of its own: the real machines of ``core.formation``, one to seven brokers with directories that survive
crashes, a consensus store as a model, a network that loses, delays and doubles, wiped machines, configs fed anywhere.

``python -m headrace.sim.formation --programs 0-10000`` compares random programs with a naive model, ``--mutants`` hunts the planted bugs.
"""
