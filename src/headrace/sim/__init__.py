"""The simulator: whole brokers and their clients on virtual time, with a network and disks that fail by a seed. ``python -m headrace.sim``."""
