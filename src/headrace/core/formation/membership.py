"""A broker whose directory belongs to a cluster: coming back, catching up, serving, being removed; and a fresh one that is taken in by a cluster.

Owns when the consensus member is started and with what, what becomes of the data when another cluster's charter or a reset leaves it out, and which
proposals are committed. Forming a new cluster is ``forming``'s, the order of changes ``planning``'s.

M1 a member starts ``new`` only with the directory's own acceptance, ``existing`` only with the data of its seat; any other joins as a learner. M2 a
seat that has been at work and has lost its data is never taken again: the directory gets another incarnation. M3 data is set aside only on a
committed charter that ends this cluster or leaves its data out, and confirms it. M4 who is ACTIVE has read a charter that enrols it from a
coordinator with a leader, in this life.
"""

from msgspec.structs import replace

from headrace.core.formation.books import Books, Request
from headrace.core.formation.effects import (
    AddLearner,
    Commit,
    Drain,
    Follow,
    Promote,
    Remove,
    Standing,
    StartConsensus,
    State,
    StopConsensus,
)
from headrace.core.formation.forming import Forming
from headrace.core.formation.judging import Judgement, Verdict, judge, meet
from headrace.core.formation.messages import Hello
from headrace.core.formation.planning import Picture, Step, steps
from headrace.core.formation.records import Acceptance, Applied, Aside, Bootstrap, Charter, Enrolled, Gone, Held, Identity, charter_of
from headrace.model.formation import Comparison, Declared, compare, mark


class Membership:
    """See the module's head."""

    def __init__(self, books: Books, forming: Forming) -> None:
        self._books = books
        self._forming = forming
        self.started: StartConsensus | None = None
        """What was last asked to run."""
        self._followed: Follow | None = None
        self.active = False
        """It has served in this life and goes on, whatever becomes of the coordinator's leader."""
        self.plan: tuple[Step, ...] = ()
        self._draining: tuple[str, ...] = ()
        self.own_hello: Hello | None = None
        """What it would say of itself."""

    # ------------------------------------------------------------ the consensus member

    def _start(self, wanted: StartConsensus) -> None:
        if self.started != wanted and (self.started is None or self.started.seat != wanted.seat or self.started.token != wanted.token):
            self.started = wanted
            self._followed = None
            self._books.consensus_seat = wanted.seat
            self._books.out.append(wanted)

    def stop(self, reason: str, *, drop: bool = False) -> None:
        """Stops the member; without its data if its seat is not this broker's any more."""
        if self.started is not None or (drop and self._books.consensus_seat):
            self.started = None
            self._books.out.append(StopConsensus(drop, reason))
            if drop:
                self._books.consensus_seat = 0

    def _follow(self, cluster_id: str, voters: tuple[tuple[str, str], ...], *, guest: bool = False) -> None:
        wanted = Follow(cluster_id, voters, guest)
        if self.started is None and self._followed != wanted:
            self._followed = wanted
            self._books.out.append(wanted)

    def forget(self) -> None:
        """The data was set aside."""
        self.started = self._followed = None
        self.active = False
        self.plan = ()
        self._draining = ()

    # ------------------------------------------------------------ fresh

    def fresh(self, config: Declared, conflict: tuple[str, ...]) -> Standing:
        """A fresh broker with a config: taken in by a cluster, or part of a new one."""
        books = self._books
        identity = books.identity
        assert identity is not None
        held = books.records.held
        assert held is not None
        for charter in sorted(books.foreign.values(), key=lambda c: (-c.config.version, c.cluster_id)):
            enrolled = charter.enrolled(books.name)
            if enrolled is not None and enrolled.incarnation == books.incarnation and enrolled.seat != 1 and not charter.reset:
                books.store(replace(identity, cluster_id=charter.cluster_id, formed=True, generation=charter.generation))
                return Standing(State.WAIT, "joining", f"cluster {charter.cluster_id} has enrolled it", (books.name,))
        if held.of and identity.ordered_by is not None and identity.ordered_by.cluster_id == held.of:
            books.store(replace(held, of=""))
            return Standing(State.WAIT, "joining", "the cluster that had committed its config has ended", (books.name,))
        if conflict:
            reason = f"version {config.version} has other content on {', '.join(conflict)}: feed a younger one"
            return Standing(State.HALTED, "config_conflict", reason, conflict)
        me = config.member(books.name)
        if me is None and config.undeclared == "closed":
            return Standing(State.HALTED, "not_listed", f"version {config.version} does not list {books.name}")
        formed = books.holding(config.names)
        if formed:
            return self._meets(config, formed)
        if me is not None and me.role == "voter":
            return self._forming.step(config)
        missing = tuple(n for n in config.voters if books.hello(n) is None)
        return Standing(State.WAIT, "forming", "waits for the voters to form the cluster", missing or config.voters)

    def _meets(self, config: Declared, formed: tuple[str, ...]) -> Standing:
        """Some of the members belong to a cluster: nobody may form another."""
        books = self._books
        hellos = {n: h for n in formed if (h := books.hello(n)) is not None}
        serving = tuple(n for n, h in hellos.items() if h.serving)
        if any(h.condition == "accepted" for h in hellos.values()) and not serving:
            return Standing(State.WAIT, "forming", "a cluster is being formed: waits for its quorum", formed)
        if serving:
            behind = tuple(n for n in serving if hellos[n].applied_version < config.version)
            if behind:
                reason = f"waits for {', '.join(behind)} to commit version {config.version}, or refuse it"
                return Standing(State.WAIT, "not_committed", reason, behind)
            return Standing(State.WAIT, "joining", f"waits for {', '.join(serving)} to take it in", serving)
        clusters = sorted({h.cluster_id for h in hellos.values()})
        if len(clusters) == 1 and all(h.condition == "formed" for h in hellos.values()):
            self._follow(clusters[0], tuple((n, books.peers.address(n)) for n in formed), guest=True)
        others = tuple(n for n in config.voters if n != books.name and books.hello(n) is None)
        return Standing(
            State.WAIT, "guest", f"attached to cluster {', '.join(clusters)} as a guest until it has a quorum", others or formed
        )  # fmt: skip

    # ------------------------------------------------------------ bound to a cluster, not yet formed

    def accepted(self) -> Standing:
        """A voter that has accepted a bootstrap record; also a standalone broker or a survivor that goes on as a cluster of one."""
        books = self._books
        acceptance, identity = books.records.acceptance, books.identity
        assert acceptance is not None and identity is not None
        record = acceptance.bootstrap
        charter = books.charter
        if charter is not None:
            if books.records.applied is None or books.records.applied.charter.revision < charter.revision:
                books.store(Applied(charter=charter))
            else:
                enrolled = charter.enrolled(books.name)
                seated = enrolled is not None and enrolled.incarnation == books.incarnation and self.started is not None
                seat = self.started.seat if self.started is not None else identity.seat
                books.store(
                    replace(
                        identity, cluster_id=record.cluster_id, formed=True, standalone=False, recovering=False, seat=seat or 1, settled=seated,
                        generation=charter.generation,
                    )
                )  # fmt: skip
            return Standing(State.FORMING, "formed", "the cluster is formed", (books.name,))
        if not identity.standalone and self._left_out() == "ordered":
            return Standing(State.WAIT, "setting_aside", "the data is set aside", (books.name,))
        seat = identity.seat if identity.recovering else 1
        members = tuple((v.name, v.seat, v.address) for v in record.voters)
        if identity.recovering:
            self._start(StartConsensus(mode="alone", token=record.cluster_id, seat=seat, initial=members))
        else:
            self._start(StartConsensus(mode="existing" if books.consensus_seat == 1 else "new", token=record.cluster_id, seat=1, initial=members))
        lacking = self._forming.offer(record)
        if books.consensus.leader:
            before = books.other_charter
            if not identity.recovering:
                books.ask(Commit(books.number(), 0, charter_of(record)))
            elif before is not None:
                books.ask(Commit(books.number(), before.revision, recovered(before, record, identity)))
            return Standing(State.FORMING, "committing", "has a quorum, commits the first charter", (books.consensus.leader,))
        silent = tuple(v.name for v in record.voters if v.name != books.name and books.hello(v.name) is None)
        return Standing(
            State.FORMING, "no_quorum", "has accepted the bootstrap record, waits for a quorum of its voters", silent or lacking or (books.name,)
        )  # fmt: skip

    # ------------------------------------------------------------ standalone

    def standalone(self) -> Standing:
        """A cluster of one without a consensus member; it never stops serving to become more."""
        books = self._books
        identity, held = books.identity, books.held
        assert identity is not None
        active = Standing(State.ACTIVE, "standalone", "serves alone")
        self.active = True
        if books.records.acceptance is not None:
            self.accepted()
            return Standing(State.ACTIVE, "forming", "serves, and becomes the first member of its cluster")
        if self._left_out():
            return active
        if held is None:
            return active
        judgement = judge(held, books.here(), books.peers.known, books.hello, witness=books.witness)
        if judgement.verdict is Verdict.COMMIT:
            member = held.member(books.name)
            assert member is not None
            voter = Enrolled(name=books.name, incarnation=identity.incarnation, seat=1, address=member.address)
            config = held
            record = Bootstrap(
                cluster_id=identity.cluster_id, config=config, ballot=1, seed=books.name, seed_incarnation=identity.incarnation, voters=(voter,)
            )
            books.store(record if books.records.bootstrap != record else Acceptance(bootstrap=record))
        elif judgement.verdict is Verdict.END:
            self._order(held, judgement.reason, None)
        else:
            self._say(judgement, held)
        return active

    def _say(self, judgement: Judgement, config: Declared) -> None:
        if judgement.verdict is Verdict.REFUSE:
            size = self._books.data_bytes
            self._books.alarm("refused", f"version {config.version} is refused: {judgement.reason} ({size} bytes of data here)")

    def _order(self, config: Declared, reason: str, charter: Charter | None, *, of: str = "") -> None:
        """Orders the data to be set aside; first the config is held that says so."""
        books = self._books
        if books.storing is not None:
            return
        held = books.records.held
        if held is None or mark(held.config) != mark(config) or held.of != of:
            if held is None or held.config.version <= config.version:
                books.store(Held(config=config, of=of, source=held.source if held is not None else "peer"))
                return
        books.store(
            Aside(
                id=books.fresh_id("aside"), cluster_id=books.cluster_id, version=config.version, reason=reason, keep_ms=config.discard_keep_ms,
                ordered_by=charter,
            )
        )  # fmt: skip

    def _left_out(self) -> str:
        """Looks at the charters of other clusters; says why this broker's data would be lost and may not."""
        books = self._books
        here = books.here()
        for other in sorted(books.foreign.values(), key=lambda c: (-c.generation, -c.config.version, c.cluster_id)):
            meeting, code, reason = meet(other, here, serving=self.active and (here.charter is None or bool(books.consensus.leader)))
            if meeting == "discard":
                self._order(other.config, reason, None, of=other.cluster_id)
                return "ordered"
            if meeting == "refuse":
                books.alarm(code, f"{reason} ({books.data_bytes} bytes of data here)")
                if code == "would_lose_data" and not (self.active and (here.charter is None or books.consensus.leader)):
                    return reason
        return ""

    # ------------------------------------------------------------ formed

    def formed(self) -> Standing:
        """A member of a cluster."""
        books = self._books
        identity, charter = books.identity, books.charter
        assert identity is not None
        if charter is None:
            if identity.seat and books.consensus_seat == identity.seat:
                self._rejoin(identity, None)
            return Standing(State.WAIT, "no_quorum", f"waits for cluster {identity.cluster_id}", self._silent(None))
        standing = self._standing(identity, charter)
        if standing is not None:
            return standing
        enrolled = charter.enrolled(books.name)
        if charter.reset:
            self._order(charter.config, f"version {charter.reset} gives the data of the cluster up", charter)
            return Standing(State.WAIT, "setting_aside", f"version {charter.reset} gives the data of the cluster up", (books.name,))
        lost = self._left_out()
        if lost == "ordered":
            return Standing(State.WAIT, "setting_aside", "the data is set aside", (books.name,))
        if enrolled is None or enrolled.incarnation != identity.incarnation:
            self._follow(charter.cluster_id, self._voters(charter))
            leader = books.consensus.leader
            if not leader:
                return Standing(State.WAIT, "no_quorum", "waits for a quorum of the voters, to be taken in by it", self._silent(charter))
            return Standing(State.WAIT, "not_enrolled", "waits for the cluster to take this directory in", (leader,))
        if self._settle(identity, charter, enrolled):
            return Standing(State.CATCHUP, "seating", "takes its seat", (books.name,))
        self._rejoin(identity, charter)
        standing = self._serve(charter, enrolled)
        if lost and not self.active:  # its own cluster has no quorum; once it has, it goes on serving what it has
            return Standing(State.HALTED, "would_lose_data", lost)
        return standing

    def _standing(self, identity: Identity, charter: Charter) -> Standing | None:
        """Removed or replaced; and what has to be noted of the charter."""
        books = self._books
        gone = charter.has_gone(identity.incarnation)
        if gone is not None and gone.replaced:
            self.active = False
            self.stop("another directory of that name took its place")
            return Standing(State.HALTED, "replaced", f"another directory of {books.name} is in the cluster")
        if gone is not None:
            self.active = False
            self.stop("removed from the cluster")
            books.store(replace(identity, removed_version=max(1, gone.version)))
            return Standing(State.REMOVED, "removed", f"version {gone.version} removed it from cluster {charter.cluster_id}")
        if books.records.applied is None or books.records.applied.charter.revision < charter.revision:
            books.store(Applied(charter=charter))
            return None if self.active else Standing(State.WAIT, "noting", "notes what the cluster has committed", (books.name,))
        held = books.records.held
        if held is None or compare(mark(charter.config), mark(held.config)) in (Comparison.YOUNGER, Comparison.CONFLICT):
            books.store(Held(config=charter.config, of=charter.cluster_id, source="cluster"))
            return None if self.active else Standing(State.WAIT, "noting", "notes what the cluster has committed", (books.name,))
        return None

    def _settle(self, identity: Identity, charter: Charter, enrolled: Enrolled) -> bool:
        """Brings the seat of this directory in line with the charter; says whether something is being stored for it."""
        books = self._books
        if books.storing is not None:
            return False
        if enrolled.seat != identity.seat:
            books.store(replace(identity, seat=enrolled.seat, settled=False))
            return not self.active
        if identity.seat != books.consensus_seat and books.consensus_seat:
            self.stop("its seat is another one now", drop=True)
        if identity.seat and identity.settled and books.consensus_seat != identity.seat:
            books.store(replace(identity, incarnation=books.fresh_id("incarnation"), seat=0, settled=False))
            return True
        ready = books.consensus.running and books.consensus.caught_up and self.started is not None and self.started.seat == identity.seat
        if identity.seat and not identity.settled and ready:
            books.store(replace(identity, settled=True))
        return False

    def _rejoin(self, identity: Identity, charter: Charter | None) -> None:
        """Starts the member at once if its data is there, as a learner once it was added, else follows the voters."""
        books = self._books
        if identity.seat and books.consensus_seat == identity.seat:
            members = tuple((e.name, e.seat, e.address) for e in charter.roster if e.seat) if charter is not None else ()
            self._start(StartConsensus(mode="existing", token=identity.cluster_id, seat=identity.seat, initial=members))
            return
        if charter is None:
            return
        self._follow(charter.cluster_id, self._voters(charter))
        added = any(m.name == books.name and m.seat == identity.seat for m in books.consensus.members)
        if identity.seat and added:
            members = tuple((m.name, m.seat, self._address(charter, m.name)) for m in books.consensus.members)
            self._start(StartConsensus(mode="join", token=identity.cluster_id, seat=identity.seat, initial=members))

    def _address(self, charter: Charter, name: str) -> str:
        member, enrolled = charter.config.member(name), charter.enrolled(name)
        if member is not None:
            return member.address
        return enrolled.address if enrolled is not None and enrolled.address else self._books.peers.address(name)

    def _voters(self, charter: Charter) -> tuple[tuple[str, str], ...]:
        return tuple((e.name, self._address(charter, e.name)) for e in charter.roster if e.seat and e.name != self._books.name)

    def _silent(self, charter: Charter | None) -> tuple[str, ...]:
        books = self._books
        if charter is not None:
            names = tuple(e.name for e in charter.roster if e.seat)
        else:
            names = books.held.voters if books.held is not None else ()
        return tuple(n for n in names if n != books.name and books.hello(n) is None) or names

    def _serve(self, charter: Charter, enrolled: Enrolled) -> Standing:
        books = self._books
        config = charter.config
        leader = books.consensus.leader
        read = books.read_charter
        sure = bool(leader) and read is not None and read.revision == charter.revision
        if sure and leader == books.name:
            self._carry_out(charter)
        else:
            self.plan = ()
        if sure and (self.active or enrolled.seat):
            self._propose(charter)
        listed = config.member(books.name)
        if listed is None and config.undeclared == "closed":
            state = State.DRAINING if self.active else State.WAIT
            reason = f"version {config.version} does not list {books.name}: it is being removed"
            return Standing(state, "being_removed", reason, (leader or books.name,))
        if self.active:
            if leader:
                return Standing(State.ACTIVE, "serving", f"serves in cluster {charter.cluster_id}")
            return Standing(State.ACTIVE, "no_leader", "serves what it owns; the coordinator has no leader", self._silent(charter))
        if not sure:
            return Standing(State.WAIT, "no_quorum", "waits for a quorum of the voters", self._silent(charter) if not leader else (leader,))
        if listed is not None and listed.role == "voter":
            member = next((m for m in books.consensus.members if m.name == books.name and m.seat == enrolled.seat), None)
            if enrolled.seat == 0 or member is None or member.learner:
                return Standing(State.CATCHUP, "catching_up", "is brought in as a voter", (leader,))
        self.active = True
        return Standing(State.ACTIVE, "serving", f"serves in cluster {charter.cluster_id}")

    # ------------------------------------------------------------ proposals and steps

    def _propose(self, charter: Charter) -> None:
        """Commits the younger config that it holds, if this cluster may."""
        books = self._books
        config = books.proposed
        if config is None or charter.reset:
            return
        judgement = judge(config, books.here(), books.peers.known, books.hello, witness=books.witness)
        if judgement.verdict in (Verdict.COMMIT, Verdict.END):
            reset = config.version if judgement.verdict is Verdict.END else 0
            books.ask(Commit(books.number(), charter.revision, replace(charter, revision=charter.revision + 1, config=config, reset=reset)))
        else:
            self._say(judgement, config)

    def pending(self) -> Judgement | None:
        """What becomes of a younger config that this broker holds and its cluster has not committed; None = there is none."""
        books = self._books
        config = books.proposed
        if config is None or books.condition not in ("formed", "standalone"):
            return None
        judgement = judge(config, books.here(), books.peers.known, books.hello, witness=books.witness)
        if judgement.verdict in (Verdict.COMMIT, Verdict.END) and books.condition == "formed" and not books.consensus.leader:
            return Judgement(Verdict.WAIT, "no_leader", "the coordinator has no leader to commit it", judgement.on)
        return judgement

    def picture(self, charter: Charter) -> Picture:
        """What the plan is made from."""
        books = self._books

        def hello(name: str) -> Hello | None:
            return self.own_hello if name == books.name else books.hello(name)

        acceptance = books.records.acceptance
        offers = acceptance is not None and acceptance.bootstrap.cluster_id == charter.cluster_id
        heard = tuple(n for n in books.peers.names() if books.hello(n) is not None)
        return Picture(charter=charter, consensus=books.consensus, hello=hello, heard=heard, drained=books.drained, offers=offers)

    def _carry_out(self, charter: Charter) -> None:
        """Does the first step of the plan that nothing blocks."""
        books = self._books
        leaving = {e.name for e in charter.roster if charter.config.member(e.name) is None}
        books.drained = frozenset(n for n in books.drained if n in leaving)  # who is listed again may have something again
        self.plan = steps(self.picture(charter))
        draining = tuple(s.name for s in self.plan if s.kind == "drain")
        if draining != self._draining:
            self._draining = draining
            books.out.append(Drain(draining))
        for step in self.plan:
            if step.blocked or step.kind == "drain":
                continue
            books.ask(self._request(step, charter))
            return

    def _request(self, step: Step, charter: Charter) -> Request:
        number = self._books.number()
        if step.charter is not None:
            return Commit(number, charter.revision, step.charter)
        if step.kind == "add_learner":
            return AddLearner(number, step.name, step.seat, self._address(charter, step.name))
        if step.kind == "promote":
            return Promote(number, step.name, step.seat)
        return Remove(number, step.name, step.seat)

    # ------------------------------------------------------------ removed

    def removed(self) -> Standing:
        """Idle, data kept; comes back if a younger charter of its cluster lists it again, as another directory of the same data."""
        books = self._books
        identity, charter = books.identity, books.charter
        assert identity is not None
        self.active = False
        self.stop("removed from the cluster")
        if self._left_out() == "ordered":
            return Standing(State.WAIT, "setting_aside", "the data is set aside", (books.name,))
        if charter is not None and charter.reset and charter.config.member(books.name) is not None and charter.config.confirms(charter.cluster_id):
            self._order(charter.config, f"version {charter.reset} gives the data of the cluster up", charter)
            return Standing(State.WAIT, "setting_aside", f"version {charter.reset} gives the data of the cluster up", (books.name,))
        again = charter is not None and charter.config.version > identity.removed_version and charter.config.member(books.name) is not None
        if again and charter is not None and not charter.reset:
            books.store(replace(identity, incarnation=books.fresh_id("incarnation"), seat=0, settled=False, removed_version=0))
        reason = f"version {identity.removed_version} removed it from cluster {identity.cluster_id}; its data is kept"
        return Standing(State.REMOVED, "removed", reason)


def recovered(before: Charter, record: Bootstrap, identity: Identity) -> Charter:
    """The first charter of what a survivor goes on with: the old one's config, only the survivor enrolled, the old cluster superseded."""
    gone = tuple(
        Gone(name=e.name, incarnation=e.incarnation, version=before.config.version, replaced=True, address=e.address)
        for e in before.roster
        if e.name != record.seed
    )
    return Charter(
        cluster_id=record.cluster_id,
        revision=before.revision + 1,
        config=before.config,
        roster=record.voters,
        gone=(*before.gone, *gone),
        generation=identity.generation,
        supersedes=(*before.supersedes, before.cluster_id),
        born=before.born,
    )

