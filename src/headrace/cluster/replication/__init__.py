"""Replication as it runs: carries out what the machines of ``core.replica`` ask for, for all partitions of a broker together.

``driver.Driver`` is what a broker has: it turns frames of other brokers (``heads``, ``outbox``), flushes of the log, documents and time into calls of
the machines, and their effects into entries, frames and compare-and-swaps. Each ``partition.Replicated`` is one partition's machine with the newest
entries in memory (``recent``) and what is read for followers that are behind (``catchup``). ``interface`` is what it needs from outside and what a
partition is told. It decides nothing.
"""
