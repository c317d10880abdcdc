"""Making one cluster out of fresh brokers: promises, the bootstrap record, acceptances.

Owns rule 3 of the formation. Knows nothing of clusters that exist but that nobody may form while one of the voters belongs to one.

F1 the seed writes the bootstrap record only with the durable promises of all voters, its own among them, each given by the directory that answers for
that name now. F2 a directory promises a version and ballot to one seed and content, durably before it says so; it accepts only the record that it has
promised, and only one, for good. F3 a promise that a younger config ended counts on until nothing can come of it: its seed says that it never offered
the record, or so many of its voters have gone past it that the rest are no quorum. From F1 to F3 follows that of one config, and of those that came
from it by younger ones, at most one bootstrap record is ever accepted by a quorum.
"""

from headrace.core.formation.books import Books
from headrace.core.formation.effects import Standing, State
from headrace.core.formation.messages import Ask, Declined, Offer, Promised
from headrace.core.formation.records import EARLIER_MAX, Acceptance, Bootstrap, Enrolled, Promise, Released
from headrace.model.formation import Declared, digest, mark

ASK_MS = 500


class Forming:
    """See the module's head."""

    def __init__(self, books: Books) -> None:
        self._books = books
        self._ballot = 1
        """Lowest that may be tried."""
        self._promised: dict[str, Promised] = {}
        self._declined: dict[str, str] = {}
        self._sent_ms: dict[str, int] = {}

    # ------------------------------------------------------------ every fresh voter

    def step(self, config: Declared) -> Standing:
        """What a fresh voter of ``config`` does, none of its members being known to hold data."""
        books = self._books
        assert books.records.held is not None
        if books.records.held.of:
            return Standing(State.WAIT, "joining", f"waits for cluster {books.records.held.of} to take it in", config.voters)
        missing: list[str] = []
        reasons: list[str] = []
        for name in config.required:
            if name == books.name:
                continue
            hello = books.hello(name)
            if hello is None:
                missing.append(name)
                reasons.append(f"{name} is not reachable")
            elif hello.condition != "fresh":
                missing.append(name)
                reasons.append(f"the directory of {name} is {hello.condition}")
            elif (hello.version, hello.hash) != mark(config) or hello.of:
                missing.append(name)
                reasons.append(f"{name} does not hold version {config.version}" if not hello.of else f"{name} belongs to {hello.of}")
        if missing:
            return Standing(State.WAIT, "members_missing", "; ".join(reasons), tuple(missing))
        if config.seed != books.name:
            return Standing(State.FORMING, "promising", f"waits for the bootstrap record of {config.seed}", (config.seed,))
        return self._lead(config)

    def _voters(self, config: Declared) -> tuple[tuple[str, str], ...]:
        return tuple((m.name, m.address) for m in config.members if m.role == "voter")

    def _mine(self, config: Declared) -> Promise | None:
        """The own promise, if it is to oneself for this config and ballot."""
        promise = self._books.records.promise
        if promise is None or (promise.version, promise.hash) != mark(config):
            return None
        ours = promise.seed == self._books.name and promise.seed_incarnation == self._books.incarnation
        return promise if ours and promise.ballot >= self._ballot else None

    def _make(self, config: Declared, seed: str, seed_incarnation: str, ballot: int) -> str:
        """Stores a promise; says why it cannot."""
        books = self._books
        before = books.records.promise
        earlier: list[Released] = []
        if before is not None and before.version < config.version:
            earlier = [*before.earlier, Released(version=before.version, ballot=before.ballot, seed=before.seed,
                       seed_incarnation=before.seed_incarnation, voters=before.voters)]  # fmt: skip
        elif before is not None:
            earlier = list(before.earlier)
        earlier = [r for r in earlier if self._alive(r)]
        if len(earlier) > EARLIER_MAX:
            return "too many earlier promises are open"
        books.store(
            Promise(
                version=config.version, hash=digest(config), ballot=ballot, seed=seed, seed_incarnation=seed_incarnation,  # type: ignore[arg-type]
                voters=self._voters(config), earlier=tuple(earlier),
            )
        )  # fmt: skip
        return ""

    # ------------------------------------------------------------ the seed

    def _lead(self, config: Declared) -> Standing:
        books = self._books
        promise = self._mine(config)
        if promise is None:
            current = books.records.promise
            floor = current.ballot + 1 if current is not None and current.version == config.version else 1
            self._promised.clear()
            fault = self._make(config, books.name, books.incarnation, max(floor, self._ballot))
            return Standing(State.FORMING, "promising", fault or "makes its own promise durable", (books.name,))
        record = books.records.bootstrap
        if record is not None and self._is_of(record, promise):
            books.store(Acceptance(bootstrap=record))
            return Standing(State.FORMING, "accepting", "makes its acceptance durable", (books.name,))
        open_ones: list[Released] = list(promise.earlier)
        waiting: list[str] = []
        voters = [self._enrol(config, books.name, books.incarnation)]
        for name in config.voters:
            if name == books.name:
                continue
            given = self._promised.get(name)
            hello = books.hello(name)
            fits = given is not None and given.version == promise.version and given.hash == promise.hash and given.ballot == promise.ballot
            if given is None or hello is None or not fits or given.incarnation != hello.incarnation:
                waiting.append(name)
                self._ask(name, Ask(version=promise.version, hash=promise.hash, ballot=promise.ballot, incarnation=books.incarnation))
                continue
            open_ones.extend(given.earlier)
            voters.append(self._enrol(config, name, given.incarnation))
        if waiting:
            reasons = [f"{n}: {self._declined[n]}" for n in waiting if n in self._declined]
            return Standing(State.FORMING, "promising", "; ".join(["gathers the promises of all voters", *reasons]), tuple(waiting))
        for released in open_ones:
            if self._alive(released):
                names = tuple(name for name, _ in released.voters if name != books.name)
                reason = f"version {released.version}, promised to {released.seed} before, may have been formed: its voters must be heard"
                return Standing(State.WAIT, "earlier_promise", reason, names)
        books.store(
            Bootstrap(
                cluster_id=books.fresh_id("cluster"), config=config, ballot=promise.ballot, seed=books.name, seed_incarnation=books.incarnation,
                voters=tuple(sorted(voters, key=lambda v: v.name)),
            )
        )  # fmt: skip
        return Standing(State.FORMING, "recording", "writes the bootstrap record", (books.name,))

    def _enrol(self, config: Declared, name: str, incarnation: str) -> Enrolled:
        member = config.member(name)
        assert member is not None
        return Enrolled(name=name, incarnation=incarnation, seat=1, address=member.address)  # type: ignore[arg-type]

    def _is_of(self, record: Bootstrap, promise: Promise) -> bool:
        return (*mark(record.config), record.ballot, record.seed, record.seed_incarnation) == (
            promise.version,
            promise.hash,
            promise.ballot,
            promise.seed,
            promise.seed_incarnation,
        )

    def _ask(self, name: str, message: Ask | Offer) -> None:
        books = self._books
        if books.now_ms >= self._sent_ms.get(name, books.now_ms):
            self._sent_ms[name] = books.now_ms + ASK_MS
            books.send(name, message)

    def next_ms(self) -> int | None:
        return min((at for at in self._sent_ms.values() if at > self._books.now_ms), default=None)

    def _alive(self, released: Released) -> bool:
        """Whether something can still come of a promise that was ended."""
        books = self._books
        past = 0
        for name, _ in released.voters:
            if name == books.name:
                held = books.held
                gone_past = books.condition == "fresh" and held is not None and held.version > released.version
                incarnation = books.incarnation
            else:
                hello = books.hello(name)
                gone_past = hello is not None and hello.condition == "fresh" and hello.version > released.version
                incarnation = hello.incarnation if hello is not None else released.seed_incarnation
            if not gone_past:
                continue
            if name == released.seed and incarnation == released.seed_incarnation:
                return False
            past += 1
        return past < len(released.voters) - len(released.voters) // 2

    # ------------------------------------------------------------ what is heard

    def asked(self, sender: str, ask: Ask) -> None:
        """A seed wants a promise."""
        books = self._books
        promise = books.records.promise
        ballot = promise.ballot if promise is not None and promise.version == ask.version else 0
        reason = self._unwilling(sender, ask)
        if not reason and promise is not None and promise.version == ask.version:
            same = (promise.hash, promise.ballot, promise.seed, promise.seed_incarnation) == (ask.hash, ask.ballot, sender, ask.incarnation)
            if same:
                self._say(promise)
                return
            if ask.ballot <= promise.ballot:
                reason = f"it has promised ballot {promise.ballot} to {promise.seed}"
        if not reason:
            if books.storing is not None:
                return
            config = books.held
            assert config is not None
            reason = self._make(config, sender, ask.incarnation, ask.ballot)
        if reason:
            books.send(sender, Declined(version=ask.version, ballot=ballot, reason=reason))

    def _unwilling(self, sender: str, ask: Ask) -> str:
        books = self._books
        held = books.records.held
        promise = books.records.promise
        hello = books.hello(sender)
        if books.condition != "fresh" or books.identity is None:
            return f"its directory is {books.condition}"
        if held is None or mark(held.config) != (ask.version, ask.hash) or held.of:
            return "it does not hold this config, or belongs to a cluster"
        if sender != held.config.seed or books.name not in held.config.voters:
            return f"{held.config.seed} is the seed"
        if hello is None or hello.incarnation != ask.incarnation:
            return f"{sender} is not known by that directory"
        if promise is not None and promise.version > ask.version:
            return f"it has promised version {promise.version}"
        formed = books.holding(held.config.names)
        if formed:
            return f"{', '.join(formed)} belong to a cluster"
        return ""

    def _say(self, promise: Promise) -> None:
        self._books.send(
            promise.seed,
            Promised(
                version=promise.version, hash=promise.hash, ballot=promise.ballot, seed_incarnation=promise.seed_incarnation,
                incarnation=self._books.incarnation, earlier=promise.earlier,
            ),
        )  # fmt: skip

    def durable(self, promise: Promise) -> None:
        """The own promise is durable: now it may be said."""
        if promise.seed != self._books.name:
            self._say(promise)

    def promised(self, sender: str, message: Promised) -> None:
        """A voter's promise."""
        if message.seed_incarnation == self._books.incarnation and message.seed_incarnation:
            self._promised[sender] = message
            self._declined.pop(sender, None)
            self._sent_ms.pop(sender, None)

    def declined(self, sender: str, message: Declined) -> None:
        """A voter promises nothing; a higher ballot may help where it promised to a directory of the seed that is lost."""
        config = self._books.held
        if config is None or config.version != message.version or sender not in config.voters:
            return
        self._declined[sender] = message.reason
        promise = self._books.records.promise
        if promise is not None and promise.version == message.version and message.ballot >= promise.ballot:
            self._ballot = max(self._ballot, min(message.ballot + 1, 1 << 62))

    def offered(self, offer: Offer) -> None:
        """The record that was promised, from whoever has accepted it."""
        books, record = self._books, offer.bootstrap
        promise, held = books.records.promise, books.held
        if books.condition != "fresh" or books.storing is not None or promise is None or held is None or books.identity is None:
            return
        if mark(held) != mark(record.config) or not self._is_of(record, promise):
            return
        if any(v.name == books.name and v.incarnation == books.incarnation for v in record.voters):
            books.store(Acceptance(bootstrap=record))

    # ------------------------------------------------------------ once accepted

    def offer(self, record: Bootstrap) -> tuple[str, ...]:
        """Tells the voters that have not accepted; names those that are not known to have."""
        books = self._books
        lacking: list[str] = []
        for voter in record.voters:
            if voter.name == books.name:
                continue
            hello = books.hello(voter.name)
            if hello is not None and hello.cluster_id == record.cluster_id:
                continue
            lacking.append(voter.name)
            if hello is not None and hello.condition == "fresh" and hello.incarnation == voter.incarnation:
                self._ask(voter.name, Offer(bootstrap=record))
        return tuple(lacking)
