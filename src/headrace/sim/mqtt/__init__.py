"""MQTT in simulated clusters: clients that come, go and take each other over at any of three or five brokers while these fail, and what is promised.

``run.Run`` is one seed, ``python -m headrace.sim.mqtt --seeds A-B --jobs N`` many. The promises are those of ``checks``, and K8 of ``sim.clusters``.
"""
