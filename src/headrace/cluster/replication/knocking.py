"""A copy that nobody leads says a word to the broker that should: that one may not have taken the partition up, and does for any word about it.

Owns which copies wait for an answer. The word is an acknowledgement of no epoch, which means nothing to a replica. It is repeated: who is asked may
not have heard of the partition yet.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from headrace.cluster.replication.partition import Replicated
from headrace.model.cluster import BrokerId

KNOCK_S: Final = 1.0


class Knocking:
    """See the module's head."""

    def __init__(self, loop: asyncio.AbstractEventLoop, say: Callable[[Replicated], bool]) -> None:
        """``say(partition)`` sends the word, if there is somebody to whom it is to be said now; whether it did."""
        self._loop = loop
        self._say = say
        self._waiting: dict[int, bool] = {}

    def knock(self, partition: Replicated) -> None:
        """Its owner may be another, or be connected, as of now."""
        if partition.pid not in self._waiting:
            self._again(partition)

    def _again(self, partition: Replicated) -> None:
        self._waiting.pop(partition.pid, None)
        if self._say(partition):
            self._waiting[partition.pid] = True
            self._loop.call_later(KNOCK_S, self._again, partition)


def owner_to_wake(partition: Replicated, me: BrokerId) -> BrokerId:
    """Who should lead a copy here and has said nothing in this life, "" = there is nobody to be asked."""
    document, follower = partition.replica.document, partition.replica.follower
    if partition.halted or document is None or document.owner == me or me not in document.copies or follower.owner:
        return BrokerId("")
    return document.owner
