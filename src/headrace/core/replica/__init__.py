"""The replication of one partition as machines: who owns it in which epoch, what its followers hold, what is committed, who may own it next.

``replica.Replica`` is what a broker keeps of each partition of which it has a copy; it takes the coordinator's document, the messages of the other
brokers and the completions of the disk, and gives effects back. Inside it the broker is the ``owner`` of the partition or a ``follower``, both on one
``journal`` (what is stored, durable, committed and promised here) with its ``epochs``. ``term`` finds at the start of an epoch what must be kept,
``insync`` changes the members, ``configuration`` knows which of them must hold an entry, ``levels`` who waits for what.

Indexes are those of entries, dense from 1; every end is exclusive. A machine promises nothing when it asks for something, only when it is told that
it is done.
"""
