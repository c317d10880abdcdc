"""Queues: one partition's messages from enqueued to settled, as a machine without I/O. ``QueueMachine`` is the door; the other modules are its
parts."""

from headrace.core.queue.consumers import Consumer, Credit, Grant, Peek, Range, Settled, Taken, Transfer
from headrace.core.queue.machine import QueueMachine

__all__ = ["QueueMachine", "Consumer", "Credit", "Grant", "Settled", "Transfer", "Taken", "Peek", "Range"]
