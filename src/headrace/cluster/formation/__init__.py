"""Declared formation in the world: the driver of ``core.formation``'s machine, with a broker's records on its disk, its messages on the transport and
its consensus member in etcd. Decides nothing: what is done, and when, the machine says.
"""
