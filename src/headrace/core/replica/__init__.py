"""The replication of one partition as machines: who owns it in which epoch, what its followers hold, what is committed, who may own it next.

``replica.Replica`` is what a broker keeps of each partition of which it has a copy; it takes the coordinator's document, the messages of the other
brokers and the completions of the disk, and gives effects back. Inside it the broker is the ``owner`` of the partition or a ``follower``, both on one
``journal`` (what is stored, durable, committed and promised here) with its ``epochs``. ``term`` finds at the start of an epoch what must be kept,
``insync`` changes the members, ``configuration`` knows which of them must hold an entry, ``levels`` who waits for what.

Indexes are those of entries, dense from 1; every end is exclusive. A machine promises nothing when it asks for something, only when it is told that
it is done.

What a driver owes the machines:

- It calls ``step`` once a turn in which something came in, and at ``next_deadline_ms``, and does the effects of ``take`` in their order. One frame a
  peer and turn carries the messages of all partitions.
- Messages come as a connection delivers them; ``connected`` and ``disconnected`` name lives of brokers, and no message of a life that has ended is
  handed in. ``heard`` is one map for all partitions, renewed by every frame; ``sure`` another, renewed by answers to what was sent
  at that moment: an owner that stood still must not deliver because of what its sockets had kept.
- Completions come in the order of the log. ``durable`` is called once a flush and partition. ``Cut`` and ``Promise`` are entries of the log
  (TRUNCATE, PROMISE), so that they are durable in order with the others.
- A start finds in ``Recovered`` what ``snapshot`` says: the high watermark as a lower bound (what checkpoints and moved data cover); ``unclean``
  until it was cleared here, over clean stops too; ``suspect`` if damage was found.
- Every ``Swap`` is answered, with UNKNOWN if no answer came; with REFUSED goes the document that is recorded.
- Before anything is appended it asks ``refusal``; before anything is delivered, leased or assigned, ``delivers``. ``Committed`` lets entries be
  applied. ``Unknown`` is never told to anyone as a failure.
"""
