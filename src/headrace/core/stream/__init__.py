"""One stream partition as a machine: what its readers may read now, how far its cursors have come, what may go. Records live elsewhere."""

from headrace.core.stream.cursor import Cursor
from headrace.core.stream.machine import StreamMachine
from headrace.core.stream.reader import Moved, Opened, Read, RetentionWish, Retraction

__all__ = ["Cursor", "Moved", "Opened", "Read", "RetentionWish", "Retraction", "StreamMachine"]
