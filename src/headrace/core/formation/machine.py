"""The formation of one broker: what comes in, what goes out, in which state it is.

Owns the verbs and the order in which what is known is looked at: after each verb everything is decided anew from the durable records, the peers and
the consensus, so it does not matter in which order, how often or how late anything was heard. The parts decide (``forming``, ``membership``,
``judging``, ``planning``, ``telling``); this module only says whose turn it is.

C1 one store is under way at a time and counts when it is done. C2 every state has a reason, says on whom it waits and since when. C3 it never raises
because of what it is told, and never reads a clock: time and entropy are given.
"""

from collections.abc import Sequence
from typing import Any, Final

from msgspec.structs import replace

from headrace.core.formation.books import Books, Found
from headrace.core.formation.effects import (
    NO_CONSENSUS,
    Answer,
    AnyEffect,
    Changed,
    Consensus,
    Exit,
    SetAside,
    Standing,
    State,
    Verdict,
)
from headrace.core.formation.forming import Forming
from headrace.core.formation.judging import HOLDING, judge
from headrace.core.formation.judging import Verdict as Judged
from headrace.core.formation.membership import Membership
from headrace.core.formation.messages import AnyMessage, Ask, Declined, Hello, Offer, Promised, Proposal, Tidings, unsound
from headrace.core.formation.outlook import Outlook, outlook
from headrace.core.formation.planning import Step, steps, unsafe
from headrace.core.formation.records import Charter, Directory, Identity, Promise, Record
from headrace.core.formation.telling import Telling
from headrace.model.formation import Comparison, Declared, compare, contradictions, digest, mark

ASIDE_AGAIN_MS: Final = 5_000
GUEST_CODES: Final = ("guest",)


class Formation:
    """See the module's head. Call a verb, then do what ``take()`` gives, in order."""

    def __init__(self, found: Found, now_ms: int) -> None:
        assert len(found.entropy) >= 16, "entropy is 16 random bytes or more"
        self._books = books = Books(found, now_ms)
        self._found = found
        self._forming = Forming(books)
        self._membership = Membership(books, self._forming)
        self._telling = Telling(books)
        self.standing = Standing(State.INIT, "starting", "has not looked at its directory yet")
        self.since_ms = now_ms
        self._aside_ms: int | None = None
        self._exited = False
        self._draining = ""
        self._refused: tuple[int, str] = (0, "")
        """The version that was fed last with other content than is known here, and what was answered."""
        self._step(now_ms)

    # ------------------------------------------------------------ verbs

    def fed(self, config: Declared, now_ms: int, *, source: str = "command") -> Answer:
        """An operator wants ``config``. ``BEGUN`` may be said to him once the ``Store`` that came of it is done."""
        self._books.now_ms = now_ms
        answer = self.weigh(config)
        if answer.verdict is Verdict.BEGUN:
            self._books.hold(config, source)
        elif answer.verdict is Verdict.CONFLICT:
            self._refused = (answer.version, answer.reason)
        else:
            return answer
        self._step(now_ms)
        return answer

    def weigh(self, config: Declared) -> Answer:
        """What feeding ``config`` would be answered now; nothing is taken on."""
        books = self._books
        charter, current = books.charter, self.current
        version = current.version if current is not None else 0
        if wrong := contradictions(config):
            return Answer(Verdict.INVALID, version, "; ".join(wrong))
        if current is not None:
            answer = self._compared(config, current, charter)
            if answer is not None:
                return answer
        if books.condition in ("removed", "unidentified"):
            return Answer(Verdict.INVALID, version, f"this broker is {books.condition}: feed a member of the cluster")
        if books.storing is not None or books.identity is None or self._aside_due() or (charter is not None and charter.reset):
            return Answer(Verdict.BUSY, version, "a change is being made durable: try again in a moment")
        if books.condition in ("formed", "standalone"):
            judgement = judge(config, books.here(), books.peers.known, books.hello)
            if judgement.verdict is Judged.REFUSE:
                return Answer(Verdict.INVALID, version, judgement.reason)
        waits = "" if books.name in config.names else f"; it does not list {books.name}"
        return Answer(Verdict.BEGUN, config.version, f"version {config.version} is taken on{waits}")

    def _compared(self, config: Declared, current: Declared, charter: Charter | None) -> Answer | None:
        compared = compare(mark(config), mark(current))
        if compared is Comparison.SAME:
            committed = charter is not None and mark(charter.config) == mark(config)
            return Answer(Verdict.ALREADY, config.version, "it is committed" if committed else f"it is known here: {self.standing.reason}")
        if compared is Comparison.OLDER:
            return Answer(Verdict.OLDER, current.version, f"version {config.version} is older than {current.version}, which is current")
        if compared is Comparison.CONFLICT:
            reason = f"version {config.version} is known with other content ({digest(current)} here, {digest(config)} given): raise the version"
            return Answer(Verdict.CONFLICT, current.version, reason)
        return None

    def heard(self, sender: str, message: AnyMessage, now_ms: int) -> None:
        """A peer, authenticated as a holder of the cluster secret, says something."""
        books = self._books
        books.now_ms = now_ms
        if sender == books.name or unsound(message):
            return
        if isinstance(message, Hello):
            if books.peers.heard(sender, message, now_ms):
                self._telling.answer(sender, message)
        elif isinstance(message, Proposal):
            self._telling.proposed(message)
        elif isinstance(message, Tidings):
            self._telling.tidings(message)
        elif isinstance(message, Ask):
            self._forming.asked(sender, message)
        elif isinstance(message, Promised):
            self._forming.promised(sender, message)
        elif isinstance(message, Declined):
            self._forming.declined(sender, message)
        elif isinstance(message, Offer):
            self._forming.offered(message)
        self._step(now_ms)

    def corrected(self, now_ms: int) -> None:
        """The operator has looked to its own configuration: its former mistakes are none any more."""
        self._found = replace(self._found, mistakes=())
        self._step(now_ms)

    def introduced(self, name: str, address: str, now_ms: int) -> None:
        """A broker of that name was found there: it is greeted as long as this one knows no config."""
        self._telling.introduced(name, address)
        self._step(now_ms)

    def peer_lost(self, name: str, now_ms: int) -> None:
        """The connection to it broke."""
        self._books.peers.lost(name, now_ms)
        self._step(now_ms)

    def stored(self, record: Record, now_ms: int) -> None:
        """``record`` is durable in its slot."""
        books = self._books
        books.now_ms = now_ms
        if books.storing != record:
            return
        books.storing = None
        books.records = books.records.stored(record)
        if isinstance(record, Promise):
            self._forming.durable(record)
        if isinstance(record, Identity):
            foreign = books.foreign.pop(record.cluster_id, None)
            if foreign is not None:
                books.learn(foreign, read=False)
        self._step(now_ms)

    def consensus(self, consensus: Consensus, now_ms: int) -> None:
        """How the consensus looks now. Told after every change and at least once a second; while it has a leader, ``committed`` follows at once:
        only both together are a look after which something is asked for."""
        self._books.consensus = consensus
        self._step(now_ms)

    def committed(self, charter: Charter | None, now_ms: int) -> None:
        """The charter in the own cluster's coordinator, read there; None = there is none yet."""
        books = self._books
        books.now_ms = now_ms
        if charter is not None and not contradictions(charter.config):
            books.learn(charter, read=True)
        books.looked = True
        self._step(now_ms)

    def answered(self, number: int, now_ms: int, *, fault: str = "") -> None:
        """What became of a numbered effect; ``fault`` "" = it was done. What is so now is seen by looking."""
        self._books.answered(number, fault)
        self._step(now_ms)

    def set_aside(self, id: str, now_ms: int) -> None:
        """The data was set aside: nothing is left but the slots outside."""
        books = self._books
        aside = books.records.aside
        if aside is None or aside.id != id or not self._aside_due():
            return
        books.records = books.records.without_data()
        books.has_data = False
        books.consensus_seat = 0
        books.consensus = NO_CONSENSUS
        books.read_charter = books.heard_charter = books.other_charter = None
        books.request = None
        books.storing = None
        books.drained = frozenset()
        self._membership.forget()
        self._forming = Forming(books)
        self._membership = Membership(books, self._forming)
        self._aside_ms = None
        self._step(now_ms)

    def drained(self, names: Sequence[str], now_ms: int) -> None:
        """These brokers own and copy nothing any more, of all that are being drained."""
        self._books.drained = frozenset(names)
        self._step(now_ms)

    def holds(self, data_bytes: int) -> None:
        """How much data lies here, for alarms and displays."""
        self._books.data_bytes = max(0, min(data_bytes, 1 << 62))

    def stopping(self, reason: str, now_ms: int) -> None:
        """The broker is going to stop and hands over what it owns."""
        self._draining = reason
        self._step(now_ms)

    def tick(self, now_ms: int) -> None:
        """Time has passed."""
        self._step(now_ms)

    def take(self) -> list[AnyEffect]:
        """What is to be done, in order."""
        out, self._books.out = self._books.out, []
        return out

    # ------------------------------------------------------------ deciding

    def _step(self, now_ms: int) -> None:
        books = self._books
        books.now_ms = now_ms
        books.expire()
        if books.storing is None:
            before = self.standing
            standing = self._decide()
            if self._draining and standing.state is State.ACTIVE:
                standing = Standing(State.DRAINING, "stopping", self._draining)
            if standing != before:
                if (standing.state, standing.code) != (before.state, before.code):
                    self.since_ms = now_ms
                self.standing = standing
                books.out.append(Changed(before, standing))
            self._leave(standing)
            self._watch_versions()
            books.settle_alarms()
        own = self._telling.hello(self.standing)
        self._membership.own_hello = own
        self._telling.greet(own)

    def _decide(self) -> Standing:
        books = self._books
        identity, aside = books.identity, books.records.aside
        if self._found.damaged:
            return Standing(State.HALTED, "damaged", self._found.damaged)
        if aside is not None and self._aside_due() and (identity is not None or books.has_data):
            if self._aside_ms is None or books.now_ms >= self._aside_ms + ASIDE_AGAIN_MS:
                self._aside_ms = books.now_ms
                books.out.append(SetAside(aside.id, aside.cluster_id, aside.keep_ms, aside.reason))
            self._membership.active = False
            return Standing(State.WAIT, "setting_aside", f"sets the data of {aside.cluster_id} aside: {aside.reason}", (books.name,))
        if identity is None and books.has_data:
            return Standing(State.HALTED, "unidentified", "there is data without an identity: whose it is cannot be said, so it is left alone")
        if identity is None:
            return self._first(aside is not None)
        if self._configure():
            return Standing(State.INIT, "noting", "notes its configuration", (books.name,))
        if identity.removed_version:
            return self._membership.removed()
        if identity.standalone:
            return self._membership.standalone()
        if identity.formed:
            return self._membership.formed()
        if books.records.acceptance is not None:
            return self._membership.accepted()
        if self._found.mistakes and (books.held is None or books.records.promise is None):
            return Standing(State.HALTED, "broken_config", "; ".join(self._found.mistakes))
        if books.held is None:
            return Standing(State.WAIT, "no_config", "waits for a config that lists it, fed here or to any of its peers")
        return self._membership.fresh(books.held, self._conflicts(books.held))

    def _aside_due(self) -> bool:
        aside, identity = self._books.records.aside, self._books.identity
        return aside is not None and (identity is None or identity.aside != aside.id)

    def _first(self, after_aside: bool) -> Standing:
        """An empty directory gets an identity."""
        books = self._books
        aside = books.records.aside
        identity = Identity(node_id=books.fresh_id("node"), incarnation=Directory(books.fresh_id("incarnation")))
        if after_aside and aside is not None:
            identity = replace(identity, aside=aside.id, ordered_by=aside.ordered_by)
        elif not books.coordinated and self._found.configured is None and not self._found.mistakes:
            identity = replace(identity, cluster_id=books.fresh_id("cluster"), formed=True, standalone=True)
        books.store(identity)
        return Standing(State.INIT, "identity", "makes its identity durable", (books.name,))

    def _configure(self) -> bool:
        """Takes the config of its own configuration for one that was fed, if it is younger, or the directory has promised nothing yet."""
        books = self._books
        config, held = self._found.configured, books.records.held
        if config is None:
            return False
        self._found = replace(self._found, configured=None)
        charter = books.charter
        known = max((mark(c) for c in (held.config if held else None, charter.config if charter else None) if c is not None), default=(0, ""))
        compared = compare(mark(config), known)
        promise = books.records.promise
        untouched = books.condition == "fresh" and (promise is None or promise.version < config.version)
        if compared is Comparison.YOUNGER or (compared is Comparison.CONFLICT and untouched):
            books.hold(config, "configuration")
            return True
        if compared is Comparison.CONFLICT:
            books.last_error = f"the configured version {config.version} has other content than what is known here: it is not used"
        return False

    def _conflicts(self, config: Declared) -> tuple[str, ...]:
        """Members that have the same version with other content."""
        found = []
        mine = mark(config)
        for name in config.names:
            hello = self._books.peers.known(name)
            if hello is None or name == self._books.name:
                continue
            theirs = (hello.applied_version, hello.applied_hash) if hello.condition in HOLDING else (hello.version, hello.hash)
            if theirs[0] and compare(theirs, mine) is Comparison.CONFLICT:
                found.append(name)
        return tuple(found)

    def _watch_versions(self) -> None:
        """Alarms of a member: another content of the committed version, a broken configuration."""
        books = self._books
        charter = books.charter
        if books.condition not in HOLDING:
            return
        if self._found.mistakes:
            books.alarm("broken_config", "the configured cluster config is not used: " + "; ".join(self._found.mistakes))
        if charter is None:
            return
        mine = mark(charter.config)
        if self._refused[0] == mine[0]:
            books.alarm("config_conflict", f"refused: {self._refused[1]}")
        found = []
        for name in books.peers.names():
            hello = books.hello(name)
            if hello is not None and hello.version and compare((hello.version, hello.hash), mine) is Comparison.CONFLICT:
                found.append(name)
        if found:
            books.alarm("config_conflict", f"version {mine[0]} has other content on {', '.join(found)}: feed a younger one")

    def _leave(self, standing: Standing) -> None:
        """Ends the process where the config says so."""
        config = self.current
        if config is None or self._exited:
            return
        removed = standing.state is State.REMOVED and config.on_removed == "exit"
        conflict = standing.state is State.HALTED and standing.code == "config_conflict" and config.on_conflict == "exit"
        if removed or conflict:
            self._exited = True
            self._books.out.append(Exit(standing.reason))

    # ------------------------------------------------------------ looking

    def next_deadline_ms(self) -> int:
        """When ``tick`` is wanted at the latest."""
        books = self._books
        moments = [self.since_ms + 60_000 if self.since_ms + 60_000 > books.now_ms else books.now_ms + 60_000]
        for at in (books.peers.next_ms(books.now_ms), books.deadline_ms(), self._forming.next_ms()):
            if at is not None:
                moments.append(at)
        if self._aside_ms is not None:
            moments.append(self._aside_ms + ASIDE_AGAIN_MS)
        return max(books.now_ms, min(moments))

    @property
    def ready(self) -> bool:
        """Whether the broker may serve."""
        return self.standing.state is State.ACTIVE

    def plan(self, config: Declared | None = None) -> tuple[Step, ...]:
        """The steps that are left; with ``config``: those that it would bring, without doing any."""
        charter = self._books.charter
        if charter is None:
            return ()
        if config is not None:
            charter = replace(charter, config=config)
        return steps(self._membership.picture(charter))

    def outlook(self, config: Declared, now_ms: int) -> Outlook:
        """What ``config`` would bring."""
        self._books.now_ms = now_ms
        return outlook(config, self._books, self.weigh(config), self.plan(config))

    @property
    def current(self) -> Declared | None:
        """The youngest config that is known here: committed, or proposed."""
        charter, held = self._books.charter, self._books.held
        return max((c for c in (held, charter.config if charter is not None else None) if c is not None), key=mark, default=None)

    def keeps(self, name: str) -> str:
        """Why the vote of ``name`` must not be taken away now, "" = it may be."""
        charter = self._books.charter
        return unsafe(self._membership.picture(charter), name) if charter is not None else ""

    def view(self) -> dict[str, Any]:
        """What is shown: state and reason, on whom it waits since when, the peers, the cluster, the plan."""
        books = self._books
        held, charter, identity = books.records.held, books.charter, books.identity
        names = sorted({*books.peers.names(), *(held.config.names if held else ())} - {books.name})
        voters = [m for m in books.consensus.members if not m.learner]
        answering = sum(1 for m in voters if m.name == books.name or ((h := books.hello(m.name)) is not None and h.seat == m.seat))
        blockers = {name: books.peers.contact(name, books.now_ms)[1] for name in self.standing.on if name != books.name}
        return {
            "state": self.standing.state.value,
            "code": self.standing.code,
            "reason": self.standing.reason,
            "since_ms": self.since_ms,
            "waits_for": [{"name": name, "since_ms": blockers.get(name, self.since_ms)} for name in self.standing.on],
            "next_try_ms": self.next_deadline_ms(),
            "directory": books.condition,
            "address": books.address,
            "incarnation": books.incarnation,
            "node_id": identity.node_id if identity else "",
            "cluster_id": books.cluster_id,
            "generation": charter.generation if charter else 0,
            "config": {"version": held.config.version, "hash": digest(held.config), "from": held.source} if held else None,
            "committed": {"version": charter.config.version, "hash": digest(charter.config), "revision": charter.revision} if charter else None,
            "proposed": self._proposed(),
            "leader": books.consensus.leader,
            "quorum": {"need": len(voters) // 2 + 1 if voters else 0, "have": answering},
            "consensus_members": {m.name: "learner" if m.learner else "voter" for m in books.consensus.members},
            "guest": self.standing.code in GUEST_CODES,
            "plan": [str(step) for step in self._membership.plan],
            "alarms": books.raised(),
            "last_error": books.last_error,
            "peers": {name: self._peer(name) for name in names},
        }

    def _proposed(self) -> dict[str, Any] | None:
        """A younger config than the committed one, and what it waits for or why it is refused."""
        pending, config = self._membership.pending(), self._books.proposed
        if pending is None or config is None:
            return None
        what = {"version": config.version, "verdict": pending.verdict.value, "code": pending.code}
        return what | {"reason": pending.reason or "it can be committed", "on": list(pending.on)}

    def _peer(self, name: str) -> dict[str, Any]:
        books = self._books
        hello = books.peers.known(name)
        reachable, since_ms = books.peers.contact(name, books.now_ms)
        config = books.held
        member = config.member(name) if config is not None else None
        shown: dict[str, Any] = {"reachable": reachable, "since_ms": since_ms, "address": books.peers.address(name)}
        shown["role"] = member.role if member else ""
        if hello is not None:
            shown |= {
                "state": hello.state,
                "reason": hello.reason,
                "directory": hello.condition,
                "advertised": hello.address,
                "incarnation": hello.incarnation,
                "cluster_id": hello.cluster_id,
                "version": hello.version,
                "hash": hello.hash,
                "applied_version": hello.applied_version,
                "revision": hello.revision,
                "generation": hello.generation,
                "serving": hello.serving,
                "data_bytes": hello.data_bytes,
            }
        return shown

    def check(self) -> None:
        """Asserts what must always hold."""
        books = self._books
        records, standing = books.records, self.standing
        assert standing.reason, "a state without a reason"
        if standing.state is State.WAIT and standing.code != "no_config":
            assert standing.on, f"it waits and does not say on whom: {standing}"
        identity, acceptance, promise = records.identity, records.acceptance, records.promise
        if acceptance is not None and identity is not None and not identity.standalone and not identity.recovering and promise is not None:
            if not identity.formed:
                assert promise.version == acceptance.bootstrap.config.version, "accepted what was not promised"
        started = self._membership.started
        if started is not None and identity is not None:
            if started.mode == "new":
                assert acceptance is not None, "a new consensus member without an acceptance"
        if standing.state in (State.REMOVED, State.HALTED) and standing.code in ("removed", "replaced"):
            assert started is None, "a consensus member of one that was removed"
