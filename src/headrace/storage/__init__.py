"""Bytes that must survive: the shared write-ahead log, segments, checkpoints and small state. Knows partitions and entries, never what a message or
a lease means."""
