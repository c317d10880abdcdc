"""How an install travels between drivers: what the machines' ``Install`` stands for, in parts that are asked for one by one.

Values only. ``number`` is the sender's for one attempt to give one replica a copy; it stays the same over sessions, epochs and connections, and the
receiver keeps what it has of it. ``end`` may grow meanwhile: what was received of the records stays, the checkpoint is another one.
"""

from headrace.core.replica.messages import Message


class Offer(Message, frozen=True, tag=33):
    """Who has it to who lacks it: a checkpoint that stands for everything below ``end``, and the records that it needs."""

    number: int
    end: int
    base_epoch: int
    """Of the entry before ``end``."""
    first_offset: int
    end_offset: int
    """Which offsets those records have."""
    checkpoint_bytes: int
    checkpoint_crc: int
    """CRC-32C."""


class Want(Message, frozen=True, tag=34):
    """The answer: the records from ``offset`` on; or, once ``offset`` is that of their end, the checkpoint's bytes from ``at`` on."""

    number: int
    end: int
    offset: int
    at: int


class Part(Message, frozen=True, tag=35):
    """What was asked for, as far as one message goes. The bytes come where an ``Append`` has its entries: records as they lie in the log if
    ``offset`` is below the end of the records, else a piece of the checkpoint."""

    number: int
    end: int
    offset: int
    """As in ``Want``."""
    at: int
    next_offset: int
    """Where the records go on; all below were sent, or live no more."""


AnyInstall = Offer | Want | Part
