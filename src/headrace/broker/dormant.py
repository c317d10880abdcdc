"""The copies of partitions with which a broker of a cluster has nothing to do yet: their recorded documents, and what calls for more than that.

Owns the documents of copies that were not taken up in this life. Does not know what taking up is (``cluster``).

I1 A copy is taken up before anything is appended to it, before any question about its content is answered, and for every message of another broker
about it. I2 What the log holds and what has something to do at some time is never dormant: else the log's files would be held, and timers be missed.
I3 A partition whose members, level or floor are to be changed is taken up by its owner, who alone can change them. I4 Who has taken a copy up has its
owner take it up too (the replication driver sends it a word): only an owner says what of it is committed, and makes a damaged copy good.
I5 What is the brokers' own is in use wherever there is a copy of it.
"""

from collections.abc import Callable

from headrace.broker.catalogue import OWN, Item
from headrace.model.cluster import Assignment, BrokerId


class Dormant:
    """See the module's head."""

    def __init__(self, me: BrokerId, busy: Callable[[int], bool]) -> None:
        """``busy(pid)``: whether there is something to do for the copy, used or not."""
        self._me = me
        self._busy = busy
        self._documents: dict[int, Assignment] = {}

    def document(self, pid: int) -> Assignment | None:
        """Of what is dormant."""
        return self._documents.get(pid)

    def owned(self, pid: int) -> bool:
        """Whether it is dormant and this broker's to serve."""
        document = self._documents.get(pid)
        return document is not None and document.owner == self._me

    def note(self, document: Assignment, item: Item | None) -> bool:
        """The recorded document of a copy that is not taken up; whether it is to be now."""
        pid = document.partition
        if self._me not in document.copies:
            self._documents.pop(pid, None)
            return False
        self._documents[pid] = document
        if self._busy(pid) or document.item.startswith(OWN):
            return True
        return document.owner == self._me and (_is_to_change(document) or (item is not None and _differs(document, item)))

    def declared(self, pid: int, item: Item) -> bool:
        """Its queue or stream is known, as it is set now; whether it is to be taken up for that."""
        document = self._documents.get(pid)
        return document is not None and document.owner == self._me and _differs(document, item)

    def take(self, pid: int) -> Assignment | None:
        """It is taken up: it is dormant no more."""
        return self._documents.pop(pid, None)


def _is_to_change(document: Assignment) -> bool:
    short = document.level == "replica_durable" and len(document.isr) < len(document.replicas)
    return bool(document.learners or document.leaving or document.elr or short)


def _differs(document: Assignment, item: Item) -> bool:
    return (document.level, document.floor) != (item.spec.durability, item.spec.min_in_sync_replicas)
