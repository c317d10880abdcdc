"""What must hold after every step of the small world, whatever was lost, delayed, restarted or wiped.

Owns the ledgers of what was ever promised, accepted and confirmed. Looks at the disks, not at what the machines say of them.
"""

from itertools import pairwise

from headrace.core.formation.effects import SetAside, StartConsensus
from headrace.core.formation.messages import Promised
from headrace.core.formation.records import Acceptance, Applied, Bootstrap, Charter, Directory, Promise, Record, Records
from headrace.model.formation import Declared, mark
from headrace.sim.formation.store import Member, Store
from headrace.sim.formation.violation import Violation


class Checks:
    """See the module's head."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._promises: dict[Directory, set[tuple[int, str, int, str]]] = {}
        self._highest: dict[Directory, tuple[int, int]] = {}
        self._accepted: dict[Directory, str] = {}
        self._records: dict[str, Bootstrap] = {}
        self._applied: dict[Directory, int] = {}
        self.fed: list[Declared] = []
        self.recovered: set[str] = set()
        self.wiped: set[Directory] = set()
        """Directories that are no more."""
        self.lost: set[Directory] = set()
        """Those of them that nobody set aside: machines that were wiped."""
        self.asides = 0
        self._caught_up: set[tuple[str, str, int]] = set()
        self._believed: dict[tuple[str, int, str], int] = {}

    def durable(self, name: str, record: Record, records: Records) -> None:
        """``record`` reached the disk of ``name``; ``records`` is what lies there now."""
        identity = records.identity
        inc = identity.incarnation if identity is not None else Directory("")
        if isinstance(record, Promise):
            highest = (record.version, record.ballot)
            if highest < self._highest.get(inc, (0, 0)):
                raise Violation("promise", f"{name} promises {highest} after {self._highest[inc]}")
            self._highest[inc] = highest
            self._promises.setdefault(inc, set()).add((record.version, record.hash, record.ballot, record.seed_incarnation))
        elif isinstance(record, Bootstrap):
            if identity is not None and not identity.standalone:
                self._bootstrap(name, record)
        elif isinstance(record, Acceptance):
            self._accepts(name, inc, record.bootstrap, records)
        elif isinstance(record, Applied):
            version = record.charter.config.version
            if version < self._applied.get(inc, 0):
                raise Violation("versions", f"{name} applies version {version} after {self._applied[inc]}")
            self._applied[inc] = version

    def _bootstrap(self, name: str, record: Bootstrap) -> None:
        for voter in record.voters:
            given = (*mark(record.config), record.ballot, record.seed_incarnation)
            if given not in self._promises.get(voter.incarnation, set()):
                raise Violation("promise", f"{name} writes a bootstrap record that {voter.name} has not promised durably")

    def _accepts(self, name: str, inc: Directory, record: Bootstrap, records: Records) -> None:
        if records.identity is not None and records.identity.formed and not records.identity.standalone:
            raise Violation("form again", f"{name} is formed and accepts {record.cluster_id}")
        before = self._accepted.setdefault(inc, record.cluster_id)
        if before != record.cluster_id:
            raise Violation("form again", f"{name} accepts {record.cluster_id} after {before}")
        self._records[record.cluster_id] = record
        self._two_clusters(record)

    def _living(self, record: Bootstrap) -> bool:
        """Whether a quorum has accepted it and has it still, and has not decided to give it up."""
        if any(isinstance(e, Charter) and e.reset for e in self._store.ledgers.get(record.cluster_id, ())):
            return False
        kept = sum(1 for v in record.voters if self._accepted.get(v.incarnation) == record.cluster_id and v.incarnation not in self.wiped)
        return kept >= len(record.voters) // 2 + 1

    def _two_clusters(self, record: Bootstrap) -> None:
        if not self._living(record):
            return
        for other in self._records.values():
            if other.cluster_id == record.cluster_id or not self._living(other):
                continue
            same = mark(other.config) == mark(record.config)
            shared = {v.name for v in other.voters} & {v.name for v in record.voters}
            untouched = not any(v.incarnation in self.lost for v in (*other.voters, *record.voters))
            if same or (shared and untouched):
                versions = f"versions {record.config.version} and {other.config.version}"
                raise Violation("two clusters", f"{record.cluster_id} and {other.cluster_id} live, {versions}")

    def says(self, name: str, message: object, records: Records) -> None:
        """A message leaves a broker."""
        if isinstance(message, Promised):
            promise = records.promise
            if promise is None or (promise.version, promise.hash, promise.ballot) != (message.version, message.hash, message.ballot):
                raise Violation("promise", f"{name} says that it has promised version {message.version}; on its disk stands {promise}")

    def starts(self, name: str, effect: StartConsensus, records: Records, member: Member | None) -> None:
        """A consensus member is started."""
        identity = records.identity
        if effect.mode == "new":
            acceptance = records.acceptance
            if acceptance is None or acceptance.bootstrap.cluster_id != effect.token:
                raise Violation("acceptance", f"{name} starts a new consensus member without its acceptance")
            if identity is not None and identity.formed and not identity.standalone:
                raise Violation("form again", f"{name} is formed and starts a new consensus member")
        elif effect.mode in ("existing", "alone"):
            if member is None or member.seat != effect.seat:
                raise Violation("old vote", f"{name} starts the member of seat {effect.seat} without its data")

    def caught_up(self, token: str, name: str, seat: int) -> None:
        """A member answers for itself and has all that is committed."""
        self._caught_up.add((token, name, seat))

    def promotes(self, name: str, token: str, learner: str, seat: int) -> None:
        """``name`` asks for the promotion of a learner."""
        if (token, learner, seat) not in self._caught_up:
            raise Violation("promotion", f"{name} promotes {learner} in seat {seat}, which has never said that it has caught up")

    def believes(self, name: str, life: int, peer: str, lives: int) -> None:
        """``name`` in its ``life`` takes what it knows of ``peer`` from the life number ``lives``."""
        if lives < self._believed.setdefault((name, life, peer), lives):
            raise Violation("lives", f"{name} believes life {lives} of {peer} after it has believed a later one")
        self._believed[name, life, peer] = lives

    def sets_aside(self, name: str, effect: SetAside, standalone: bool) -> None:
        """Data is about to be set aside."""
        self.asides += 1
        id = effect.cluster_id
        charters = [e for ledger in self._store.ledgers.values() for e in ledger if isinstance(e, Charter)]
        permitted = any(c.config.confirms(id) and (c.reset or c.cluster_id != id) for c in charters)
        permitted |= any(id in c.supersedes for c in charters)
        permitted |= standalone and any(c.confirms(id) for c in self.fed)
        if not permitted:
            raise Violation("discard", f"{name} sets the data of {id} aside, which no committed config confirms")

    def ledger(self) -> None:
        """The versions of a cluster only grow, and a reset is its last word."""
        for token, entries in self._store.ledgers.items():
            charters = [e for e in entries if isinstance(e, Charter)]
            for one, other in pairwise(charters):
                if other.config.version < one.config.version or other.revision != one.revision + 1:
                    raise Violation("versions", f"{token} goes from version {one.config.version} to {other.config.version}")
                if one.cluster_id == other.cluster_id and other.config.version == one.config.version and mark(one.config) != mark(other.config):
                    raise Violation("versions", f"{token} has two contents of version {one.config.version}")
