"""What the machine of one broker knows and has asked for: its durable records, its peers, its cluster's charter, what the consensus looks like.

Owns the order of stores (one at a time, believed only when done), the numbers of requests to the coordinator, ids that are made from the entropy
given at the start. Decides nothing.
"""

import hashlib
from typing import Final

import msgspec

from headrace.core.formation.effects import NO_CONSENSUS, AddLearner, Alarm, AnyEffect, Commit, Promote, Remove, Send, Store
from headrace.core.formation.judging import HOLDING, Here
from headrace.core.formation.messages import AnyMessage, Condition, Hello
from headrace.core.formation.peers import Peers
from headrace.core.formation.records import NONE, Charter, Directory, Held, Identity, Record, Records, charter_of
from headrace.model.formation import Comparison, Declared, compare, mark

REQUEST_MS: Final = 5_000
FOREIGN_MAX: Final = 16

Request = Commit | AddLearner | Promote | Remove


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """What the driver finds when a broker starts."""

    name: str
    address: str
    records: Records = Records()
    has_data: bool = False
    """There is any data in the directory, whatever its records say."""
    damaged: str = ""
    """Why a record could not be read."""
    consensus_seat: int = 0
    """The seat whose consensus data lies in the directory; 0 = there is none."""
    coordinated: bool = True
    """It shall be in a cluster. False, and no config: it is standalone."""
    configured: Declared | None = None
    """The config in its own configuration."""
    mistakes: tuple[str, ...] = ()
    """Why that could not be read."""
    entropy: bytes
    """At least 16 random bytes, new at every start."""


class Books:
    """See the module's head."""

    def __init__(self, found: Found, now_ms: int) -> None:
        self.name = found.name
        self.address = found.address
        self._entropy = found.entropy
        self._made = 0
        self.records = found.records
        """Durable."""
        self.has_data = found.has_data
        self.coordinated = found.coordinated
        self.consensus_seat = found.consensus_seat
        self.storing: Record | None = None
        self.out: list[AnyEffect] = []
        self.peers = Peers(found.name, self.fresh_id("boot"))
        self.consensus = NO_CONSENSUS
        self.heard_charter: Charter | None = None
        """The newest of its own cluster that a peer has told of."""
        self.read_charter: Charter | None = None
        """The newest that was read from its own cluster's coordinator in this life."""
        self.foreign: dict[str, Charter] = {}
        self._newest: Charter | None = None
        self._newest_of: tuple[Records | None, Charter | None, Charter | None] = (None, None, None)
        """What the newest charter was found from: it is looked for again when one of them is another."""
        self.data_bytes = 0
        self.now_ms = now_ms
        self._number = 0
        self.request: Request | None = None
        self.looked = False
        """The coordinator was looked at since it was last asked for something."""
        self.other_charter: Charter | None = None
        """Of another cluster id, in the own coordinator: what a survivor starts from."""
        self.drained: frozenset[str] = frozenset()
        self._request_until_ms = 0
        self.alarms: dict[str, str] = {}
        self._raised: dict[str, str] = {}
        self.last_error = ""

    def fresh_id(self, purpose: str) -> str:
        """128 bits that nobody else has: 32 hexadecimal digits."""
        self._made += 1
        return hashlib.blake2b(self._entropy + f"/{self._made}/{self.name}/{purpose}".encode(), digest_size=16).hexdigest()

    # ------------------------------------------------------------ what is so

    @property
    def identity(self) -> Identity | None:
        return self.records.identity

    @property
    def incarnation(self) -> Directory:
        return self.records.identity.incarnation if self.records.identity is not None else NONE

    @property
    def held(self) -> Declared | None:
        return self.records.held.config if self.records.held is not None else None

    @property
    def witness(self) -> str:
        return self.records.held.witness if self.records.held is not None else ""

    def hold(self, config: Declared, source: str, *, of: str = "", witness: str = "") -> None:
        """Takes a config on; a fresh gospel bears witness that it was fresh."""
        if self.condition == "fresh" and config.gospel == self.name:
            witness = self.incarnation
        self.store(Held(config=config, of=of, source=source, witness=witness))

    @property
    def condition(self) -> Condition:
        identity = self.records.identity
        if identity is None:
            return "unidentified" if self.has_data else "starting"
        if identity.removed_version:
            return "removed"
        if identity.standalone:
            return "standalone"
        if identity.formed:
            return "formed"
        return "accepted" if self.records.acceptance is not None else "fresh"

    @property
    def cluster_id(self) -> str:
        identity, acceptance = self.records.identity, self.records.acceptance
        if identity is not None and identity.cluster_id:
            return identity.cluster_id
        return acceptance.bootstrap.cluster_id if acceptance is not None else ""

    @property
    def charter(self) -> Charter | None:
        """The newest of its own cluster."""
        records, heard, read = self._newest_of
        if records is self.records and heard is self.heard_charter and read is self.read_charter:
            return self._newest
        applied = self.records.applied.charter if self.records.applied is not None else None
        newest: Charter | None = None
        for charter in (applied, self.heard_charter, self.read_charter):
            if charter is not None and charter.cluster_id == self.cluster_id and (newest is None or charter.revision > newest.revision):
                newest = charter
        self._newest_of, self._newest = (self.records, self.heard_charter, self.read_charter), newest
        return newest

    @property
    def proposed(self) -> Declared | None:
        """The config it holds, if it is younger than what its cluster has committed."""
        held, charter = self.held, self.charter
        if held is None or (charter is not None and compare(mark(held), mark(charter.config)) is not Comparison.YOUNGER):
            return None
        return held

    def here(self) -> Here:
        """The cluster this broker belongs to, as it judges."""
        acceptance, charter = self.records.acceptance, self.charter
        if self.condition == "standalone":
            charter = None
        elif charter is None and acceptance is not None:
            charter = charter_of(acceptance.bootstrap)
        return Here(name=self.name, cluster_id=self.cluster_id, incarnation=self.incarnation, charter=charter)

    def hello(self, name: str) -> Hello | None:
        """A reachable peer's standing."""
        return self.peers.reachable(name, self.now_ms)

    def holding(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """Those of them that are reachable and hold data of a cluster, or are bound to one."""
        return tuple(n for n in names if n != self.name and (h := self.hello(n)) is not None and h.condition in HOLDING)

    # ------------------------------------------------------------ what is asked for

    def store(self, record: Record) -> None:
        """Asks for ``record`` to be made durable; nothing else may be under way."""
        assert self.storing is None, "one store at a time"
        self.storing = record
        self.out.append(Store(record))

    def send(self, to: str, message: AnyMessage) -> None:
        self.out.append(Send(to, self.peers.address(to), message))

    def ask(self, request: Request) -> None:
        """Asks the coordinator, if nothing is asked yet."""
        if self.request is None and self.looked:
            self.request = request
            self.looked = False
            self._request_until_ms = self.now_ms + REQUEST_MS
            self.out.append(request)

    def number(self) -> int:
        self._number += 1
        return self._number

    def answered(self, number: int, fault: str) -> None:
        if self.request is not None and self.request.number == number:
            self.request = None
            if fault:
                self.last_error = fault

    def expire(self) -> None:
        """A request that was not answered is forgotten: what became of it is read from the store."""
        if self.request is not None and self.now_ms >= self._request_until_ms:
            self.request = None
            self.last_error = "the coordinator did not answer"

    def deadline_ms(self) -> int | None:
        return self._request_until_ms if self.request is not None else None

    # ------------------------------------------------------------ alarms

    def alarm(self, key: str, reason: str) -> None:
        """Holds until the next look unless it is said again."""
        self.alarms[key] = reason

    def settle_alarms(self) -> None:
        """Tells what began and what ended since the last look."""
        for key, reason in self.alarms.items():
            if self._raised.get(key) != reason:
                self.out.append(Alarm(key, reason))
        for key in self._raised:
            if key not in self.alarms:
                self.out.append(Alarm(key, ""))
        self._raised = dict(self.alarms)
        self.alarms = {}

    def raised(self) -> dict[str, str]:
        return dict(self._raised)

    # ------------------------------------------------------------ charters

    def learn(self, charter: Charter, *, read: bool) -> None:
        """A charter was read from the coordinator, or told by a peer."""
        if charter.cluster_id == self.cluster_id:
            known = self.charter
            if read:
                if self.read_charter is None or charter.revision >= self.read_charter.revision:
                    self.read_charter = charter
            elif known is None or charter.revision > known.revision:
                self.heard_charter = charter
            return
        if read:
            self.other_charter = charter
            return
        before = self.foreign.get(charter.cluster_id)
        if before is None or charter.revision > before.revision:
            self.foreign[charter.cluster_id] = charter
            while len(self.foreign) > FOREIGN_MAX:
                del self.foreign[min(self.foreign, key=lambda c: (self.foreign[c].config.version, c))]
