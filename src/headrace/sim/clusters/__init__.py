"""Sweeps of whole clusters: three or five brokers each, all faults, brokers that come and go, and what that came to over many seeds.

``run.Run`` is one seed, ``python -m headrace.sim.clusters --seeds A-B --jobs N`` many. The promises are those of ``sim.clustered``, K8 and K9.
In one run of two, after everything was well for a moment, one of ``acts`` is played.
"""
