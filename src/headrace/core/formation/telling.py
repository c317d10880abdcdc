"""What is told to whom: greetings, proposals of younger configs, tidings of what a cluster has committed.

Owns the gossip. Decides nothing about clusters; takes from what is heard only what a broker in its condition may take: a config proposed by one who
is fresh or of a cluster, a charter from anyone who holds it.

T1 a broker that belongs to a cluster tells fresh ones only what its cluster has committed. T2 a config that came from a cluster carries its id, and
keeps it through gossip. T3 who is removed is told until it says that it knows. T4 who has given a cluster's data up tells its other members why, also
once it is in another cluster.
"""

from typing import Final

from msgspec.structs import replace

from headrace.core.formation.books import Books
from headrace.core.formation.effects import Standing, State
from headrace.core.formation.judging import HOLDING
from headrace.core.formation.messages import Hello, Offer, Proposal, Tidings
from headrace.core.formation.records import Held
from headrace.model.formation import Comparison, compare, digest, mark

INTRODUCED_MAX: Final = 64


class Telling:
    """See the module's head."""

    def __init__(self, books: Books) -> None:
        self._books = books
        self._told: dict[str, tuple[object, ...]] = {}
        self._introduced: dict[str, str] = {}
        """Names and addresses of brokers that were found, while no config says who there is."""

    def introduced(self, name: str, address: str) -> None:
        """A broker was found there."""
        if name in self._introduced or len(self._introduced) < INTRODUCED_MAX:
            self._introduced[name] = address

    # ------------------------------------------------------------ greetings

    def audience(self) -> dict[str, str]:
        """Everyone who is greeted, with addresses: of the configs, the charter, those removed, and those of promises that a younger config ended."""
        books = self._books
        found: dict[str, str] = {}
        promise, identity, charter, held = books.records.promise, books.identity, books.charter, books.held
        if held is None and charter is None:
            found.update(self._introduced)
        if promise is not None and books.condition == "fresh":
            for released in promise.earlier:
                found.update(released.voters)
            found.update(promise.voters)
        if identity is not None and identity.ordered_by is not None and books.condition == "fresh":
            found.update((e.name, e.address) for e in identity.ordered_by.roster)
        if charter is not None:
            found.update((g.name, g.address) for g in charter.gone if not g.replaced and not self._knows(g.name))
            found.update((e.name, e.address) for e in charter.roster)
            found.update((m.name, m.address) for m in charter.config.members)
        if held is not None:
            found.update((m.name, m.address) for m in held.members)
        return {name: address for name, address in found.items() if name != books.name}

    def _knows(self, name: str) -> bool:
        hello = self._books.peers.known(name)
        return hello is not None and hello.condition != "formed"

    def hello(self, standing: Standing) -> Hello:
        """This broker's standing, to nobody yet."""
        books = self._books
        held, charter, promise, identity = books.records.held, books.charter, books.records.promise, books.identity
        return Hello(
            boot=books.peers.boot,
            sequence=0,
            incarnation=books.incarnation,
            condition=books.condition,
            cluster_id=books.cluster_id,
            generation=identity.generation if identity is not None else 0,
            version=held.config.version if held is not None else 0,
            hash=digest(held.config) if held is not None else "",
            of=held.of if held is not None else "",
            applied_version=charter.config.version if charter is not None else 0,
            applied_hash=digest(charter.config) if charter is not None else "",
            revision=charter.revision if charter is not None else 0,
            promised=(promise.version, promise.ballot) if promise is not None else (0, 0),
            state=standing.state.value,
            reason=standing.code,
            serving=standing.state in (State.ACTIVE, State.DRAINING) and (bool(books.consensus.leader) or books.condition == "standalone"),
            seat=books.consensus_seat if books.consensus.running else 0,
            caught_up=books.consensus.running and books.consensus.caught_up,
            ended=identity is not None and identity.ordered_by is not None,
            data_bytes=books.data_bytes,
            address=books.address,
        )

    def greet(self, own: Hello) -> None:
        """Greets everyone who is due with ``own``; everyone soon, when something changed that matters to them."""
        books = self._books
        books.peers.listed(self.audience(), books.now_ms)
        told = (own.condition, own.cluster_id, own.version, own.hash, own.of, own.revision, own.serving, own.seat, own.caught_up, own.incarnation)
        for name in books.peers.names():
            if self._told.get(name, told) != told:
                books.peers.soon(name, books.now_ms)
        for name in books.peers.due(books.now_ms):
            sequence, boot, echo, asks = books.peers.greeting(name, books.now_ms)
            books.send(name, replace(own, sequence=sequence, echo_boot=boot, echo=echo, asks=asks))
            self._told[name] = told

    # ------------------------------------------------------------ answers

    def answer(self, sender: str, hello: Hello) -> None:
        """What a peer should know and, by its greeting, does not."""
        books = self._books
        identity, charter = books.identity, books.charter
        if identity is not None and identity.ordered_by is not None:
            ended = identity.ordered_by
            behind = hello.condition == "formed" and hello.cluster_id == ended.cluster_id and hello.revision < ended.revision
            if behind or (hello.of == ended.cluster_id and books.condition == "fresh"):
                books.send(sender, Tidings(charter=ended))
                return
        if charter is not None and self._offers(sender, hello):
            return
        if charter is not None and self._lacks(sender, hello):
            books.send(sender, Tidings(charter=charter))
        self._propose(sender, hello)

    def _offers(self, sender: str, hello: Hello) -> bool:
        """Gives the bootstrap record to a voter of it that has promised it and has not accepted it yet."""
        books = self._books
        charter, acceptance = books.charter, books.records.acceptance
        enrolled = charter.enrolled(sender) if charter is not None else None
        if acceptance is None or charter is None or enrolled is None or acceptance.bootstrap.cluster_id != charter.cluster_id:
            return False
        waits = hello.condition == "fresh" and hello.incarnation == enrolled.incarnation and enrolled.seat == 1
        if waits and hello.promised == charter.born and hello.version == charter.born[0]:
            books.send(sender, Offer(bootstrap=acceptance.bootstrap))
            return True
        return False

    def _lacks(self, sender: str, hello: Hello) -> bool:
        books = self._books
        charter = books.charter
        assert charter is not None
        if hello.condition in ("formed", "accepted", "removed") and hello.cluster_id == charter.cluster_id:
            return hello.revision < charter.revision
        wanted = charter.config.member(sender) is not None or charter.config.undeclared == "open" or charter.enrolled(sender) is not None
        if hello.condition in HOLDING or hello.condition == "removed":
            return wanted or hello.cluster_id in charter.supersedes
        if hello.condition != "fresh":
            return False
        if charter.has_gone(hello.incarnation) is not None:
            return True
        if not wanted:
            return 0 < hello.version < charter.config.version
        enrolled = charter.enrolled(sender)
        if enrolled is not None and enrolled.incarnation == hello.incarnation:
            return True
        compared = compare((hello.version, hello.hash), mark(charter.config))
        return compared is Comparison.OLDER or (compared is Comparison.SAME and hello.of != charter.cluster_id)

    def _propose(self, sender: str, hello: Hello) -> None:
        books = self._books
        held = books.records.held
        if held is None or hello.version >= held.config.version:
            return
        mine = books.condition
        if mine == "fresh" or (mine in HOLDING and hello.condition in HOLDING):
            if mine == "fresh" or sender in held.config.names or hello.cluster_id == books.cluster_id:
                books.send(sender, Proposal(config=held.config, of=held.of, witness=held.witness))

    # ------------------------------------------------------------ what is heard

    def proposed(self, message: Proposal) -> None:
        """A younger config from a peer."""
        books = self._books
        held, condition = books.records.held, books.condition
        if books.storing is not None or books.identity is None or condition in ("removed", "unidentified"):
            return
        config = message.config
        if held is None:
            wanted = config.member(books.name) is not None or config.undeclared == "open"
        else:
            wanted = config.version > held.config.version
        charter = books.charter
        if charter is not None and config.version <= charter.config.version:
            wanted = False
        if wanted:
            of = message.of or (held.of if held is not None and condition == "fresh" else "")
            books.hold(config, "peer", of=of if condition == "fresh" else message.of, witness=message.witness)

    def tidings(self, message: Tidings) -> None:
        """What a cluster has committed."""
        books = self._books
        charter = message.charter
        books.learn(charter, read=False)
        if books.condition != "fresh" or books.storing is not None or books.identity is None:
            return
        held = books.records.held
        if charter.has_gone(books.incarnation) is not None:
            return
        of = "" if charter.reset else charter.cluster_id
        if held is None:
            wanted = charter.config.member(books.name) is not None or charter.config.undeclared == "open"
        else:
            compared = compare(mark(charter.config), mark(held.config))
            ended = charter.reset > 0 and compared is Comparison.SAME and held.of == charter.cluster_id
            wanted = compared is Comparison.YOUNGER or ended or (compared is Comparison.SAME and not charter.reset and held.of != of)
        if wanted and (held is None or held.config != charter.config or held.of != of):
            books.store(Held(config=charter.config, of=of, source=f"cluster {charter.cluster_id}"))
