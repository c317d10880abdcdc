"""What a formation must come to, said naively: from the facts (who runs, what lies in the directories, what the clusters have committed) to the state
in which everything rests. No messages, no promises, no time.

Owns the rules of FORMATION as one would tell them. Written without the machine's own judgement, so that each is a check on the other.
"""

from collections.abc import Iterable, Mapping

import msgspec

from headrace.core.formation.records import Bootstrap, Charter
from headrace.model.formation import Declared
from headrace.sim.formation.world import Broker, World


class Node(msgspec.Struct):
    """A broker's facts."""

    name: str
    up: bool
    kind: str
    """fresh, bound, formed or removed."""
    directory: str
    cluster: str
    held: Declared | None
    of: str
    witness: str
    recalls: dict[str, tuple[str, str]]
    """Of those who do not run: kind and cluster when this one last heard of them, in this life. A disk that was wiped since is not seen from afar."""


class Cluster(msgspec.Struct):
    """A cluster's facts."""

    id: str
    config: Declared
    roster: dict[str, str]
    voters: set[str]
    """Names of those who vote in the consensus."""
    gone: set[str]
    ended: bool
    """By a reset."""
    supersedes: tuple[str, ...]
    told: set[str]
    """Names of those removed."""


class Rest(msgspec.Struct, frozen=True):
    """How a running broker ends up: ``kind`` and, of a member, its cluster ("new" = one not seen before) and version. ``doubt``: it may as well be
    ``removed`` or a member, as the order of steps decides."""

    kind: str
    cluster: str = ""
    version: int = 0
    doubt: bool = False


class Facts:
    """See the module's head."""

    def __init__(self, world: World) -> None:
        self.nodes: dict[str, Node] = {}
        self.clusters: dict[str, Cluster] = {}
        bound: dict[str, list[Bootstrap]] = {}
        for broker in world.brokers.values():
            records = broker.records
            identity, held = records.identity, records.held
            kind = "fresh"
            if identity is not None and identity.removed_version:
                kind = "removed"
            elif identity is not None and identity.formed:
                kind = "formed"
            elif records.acceptance is not None:
                kind = "bound"
                bound.setdefault(records.acceptance.bootstrap.cluster_id, []).append(records.acceptance.bootstrap)
            self.nodes[broker.name] = Node(
                broker.name, broker.up, kind, identity.incarnation if identity else f"to come {broker.name}", world.cluster(broker.name),
                held.config if held else None, held.of if held else "", held.witness if held else "", _recalled(world, broker),
            )  # fmt: skip
        for token, ledger in world.store.ledgers.items():
            charter = next((e for e in reversed(ledger) if isinstance(e, Charter)), None)
            membership = next((e for e in reversed(ledger) if not isinstance(e, Charter)), ())
            if charter is None:
                continue
            self.clusters[token] = Cluster(
                token, charter.config, {e.name: e.incarnation for e in charter.roster}, {m.name for m in membership if not m.learner},
                {g.incarnation for g in charter.gone}, charter.reset > 0, charter.supersedes,
                {g.name for g in charter.gone if not g.replaced},
            )  # fmt: skip
        self._made = 0
        self._contacts: Mapping[str, set[str]] = {}
        self._bound(world, bound)
        self.doubt: set[str] = set()

    def _bound(self, world: World, bound: dict[str, list[Bootstrap]]) -> None:
        """Who has accepted a record is a member of what comes of it."""
        for id, records in bound.items():
            record = records[0]
            if id not in self.clusters:
                roster = {v.name: str(v.incarnation) for v in record.voters}
                self.clusters[id] = Cluster(id, record.config, roster, set(roster), set(), False, (), set())
            for voter in record.voters:
                node = self.nodes[voter.name]
                promise = world.brokers[voter.name].records.promise
                waits = node.kind == "fresh" and promise is not None and promise.version == record.config.version and node.held == record.config
                if node.directory == voter.incarnation and (node.kind == "bound" or waits):
                    node.kind, node.cluster = "formed", id

    # ------------------------------------------------------------ rules

    def audiences(self) -> dict[str, set[str]]:
        """Whom each running broker greets."""
        return {n.name: self._audience(n) for n in self._up()}

    def rest(self, contacts: Mapping[str, set[str]] | None = None) -> dict[str, Rest]:
        """Where everything rests; ``contacts``: who was greeted by whom a moment ago, besides."""
        self._contacts = contacts or {}
        for _ in range(60):
            before = self._all()
            self._gossip()
            for cluster in sorted(self.clusters.values(), key=lambda c: c.id):
                self._live(cluster)
            self._meet()
            self._form()
            if self._all() == before:
                break
        return {n.name: self._of(n) for n in self.nodes.values() if n.up}

    def _all(self) -> bytes:
        return msgspec.msgpack.Encoder(order="deterministic").encode((list(self.nodes.values()), list(self.clusters.values())))

    def _up(self, kind: str = "") -> list[Node]:
        return [n for n in self.nodes.values() if n.up and kind in ("", n.kind)]

    def members(self, cluster: Cluster) -> list[Node]:
        """Those who run and whose directory is the one the cluster knows."""
        return [n for n in self._up("formed") if n.cluster == cluster.id and cluster.roster.get(n.name) == n.directory]

    def quorum(self, cluster: Cluster) -> bool:
        alive = {n.name for n in self.members(cluster)} & cluster.voters
        return len(alive) >= len(cluster.voters) // 2 + 1

    def _audience(self, node: Node) -> set[str]:
        names = set(node.held.names) if node.held else set()
        cluster = self.clusters.get(node.cluster)
        if node.kind == "formed" and cluster is not None:
            names |= set(cluster.config.names) | set(cluster.roster) | cluster.told
        return names

    def _meets(self, one: Node, other: Node) -> bool:
        before = other.name in self._contacts.get(one.name, ()) or one.name in self._contacts.get(other.name, ())
        return one is not other and (before or other.name in self._audience(one) or one.name in self._audience(other))

    def _gossip(self) -> None:
        for teller in self._up():
            for hearer in self._up():
                if not self._meets(teller, hearer):
                    continue
                self._told(teller, hearer)
                theirs, ours = teller.held, hearer.held
                if theirs is None or (ours is not None and ours.version >= theirs.version) or hearer.kind == "removed":
                    continue
                if teller.kind == "fresh" or (teller.kind == "formed" and hearer.kind == "formed"):
                    if teller.kind == "formed" and hearer.name not in theirs.names and hearer.cluster != teller.cluster:
                        continue
                    if ours is None and hearer.name not in theirs.names:
                        continue
                    mine = self.clusters.get(hearer.cluster)
                    if hearer.kind == "formed" and mine is not None and theirs.version <= mine.config.version:
                        continue
                    hearer.held, hearer.witness = theirs, teller.witness
                    if hearer.kind == "fresh":
                        hearer.of = teller.of or hearer.of
                        if theirs.gospel == hearer.name:
                            hearer.witness = hearer.directory

    def _told(self, teller: Node, hearer: Node) -> None:
        """Tidings of a cluster."""
        cluster = self.clusters.get(teller.cluster)
        if cluster is None or teller.kind != "formed":
            return
        if hearer.kind == "formed" and hearer.cluster == cluster.id:
            if hearer.directory in cluster.gone and cluster.roster.get(hearer.name) is None:
                hearer.kind = "removed"
            elif cluster.ended:
                self._empty(hearer, cluster.config, "")
            elif hearer.held is None or hearer.held.version < cluster.config.version:
                hearer.held, hearer.of, hearer.witness = cluster.config, cluster.id, ""
        if hearer.kind == "removed" and hearer.cluster == cluster.id and hearer.name in cluster.config.names and cluster.ended:
            if cluster.config.confirms(cluster.id):
                self._empty(hearer, cluster.config, "")
        elif hearer.kind == "removed" and hearer.cluster == cluster.id and hearer.name in cluster.config.names:
            self._made += 1
            hearer.kind, hearer.directory = "formed", f"again {self._made}"
        listed = hearer.name in cluster.config.names or (hearer.held is not None and hearer.held.version < cluster.config.version)
        if hearer.kind == "fresh" and listed and not cluster.ended and hearer.directory not in cluster.gone:
            if hearer.held is None or hearer.held.version <= cluster.config.version:
                hearer.held, hearer.of, hearer.witness = cluster.config, cluster.id, ""

    def _live(self, cluster: Cluster) -> None:
        """What a cluster with a quorum does."""
        members = self.members(cluster)
        if cluster.ended:
            for node in [n for n in self._up("formed") if n.cluster == cluster.id]:
                self._empty(node, cluster.config, "")
            return
        if not self.quorum(cluster):
            return
        for node in members:
            if node.held is None or node.held.version < cluster.config.version:
                node.held, node.of, node.witness = cluster.config, cluster.id, ""
        youngest = max((n.held for n in members if n.held), key=lambda c: c.version)
        if youngest.version > cluster.config.version:
            for judge in [n for n in members if n.held == youngest]:
                verdict = self._verdict(cluster, youngest, judge)
                if verdict in ("commit", "end"):
                    cluster.config = youngest
                    cluster.ended = verdict == "end"
                    return
        self._in(cluster)
        self._out(cluster)

    def _stands(self, name: str, judge: Node) -> tuple[str, str]:
        """Kind and cluster of a broker as ``judge`` knows them: who does not run is taken for what he was."""
        node = self.nodes[name]
        return (node.kind, node.cluster) if node.up else judge.recalls.get(name, ("", ""))

    def _elsewhere(self, names: Iterable[str], cluster: Cluster, judge: Node) -> set[str]:
        """The other clusters that have data on these brokers."""
        stands = [self._stands(n, judge) for n in names]
        return {of for kind, of in stands if kind in ("formed", "bound") and of != cluster.id}

    def _verdict(self, cluster: Cluster, config: Declared, judge: Node) -> str:
        """What ``judge``, a member of the cluster, does about a younger config that it holds."""
        witness = judge.witness
        others = self._elsewhere(config.names, cluster, judge)
        stake = {cluster.id, *others}
        end = "end" if all(config.confirms(c) for c in stake) else "refuse"
        stays = any(v in config.voters for v in cluster.voters)
        gospel = config.gospel
        if gospel == "reset":
            if cluster.config.gospel != "reset" or config.reset_policy == "always":
                return end
        elif not gospel:
            if others:
                return "refuse"
        elif witness and cluster.roster.get(gospel) != witness:
            return end
        else:
            node = self.nodes[gospel]
            if self._elsewhere([gospel], cluster, judge):
                return "elsewhere"
            kind, of = self._stands(gospel, judge)
            if kind == "removed" and of != cluster.id:
                return "refuse"  # it stands for the data of no cluster
            if gospel not in cluster.roster and not (node.up and node.kind != "fresh"):
                return "wait" if not node.up else end
            if node.up and node.kind == "fresh" and node.directory != cluster.roster.get(gospel) and node.held == config:
                return end
        return "commit" if stays else "refuse"

    def _in(self, cluster: Cluster) -> None:
        for member in cluster.config.members:
            node = self.nodes[member.name]
            if not node.up or node.directory in cluster.gone:
                continue
            fits = node.kind == "fresh" and node.held == cluster.config
            fits |= node.kind == "formed" and node.cluster == cluster.id
            if fits and cluster.roster.get(member.name) != node.directory:
                if member.name in cluster.roster:
                    rest = cluster.voters - {member.name}
                    if member.name in cluster.voters and self._alive(cluster, rest) < len(rest) // 2 + 1:
                        continue
                    cluster.gone.add(cluster.roster[member.name])
                    cluster.voters.discard(member.name)
                cluster.roster[member.name] = node.directory
            if cluster.roster.get(member.name) == node.directory and fits:
                node.kind, node.cluster = "formed", cluster.id
                if member.role == "voter":
                    cluster.voters.add(member.name)

    def _alive(self, cluster: Cluster, names: set[str]) -> int:
        return len({n.name for n in self.members(cluster)} & names)

    def _out(self, cluster: Cluster) -> None:
        leaving = [n for n in cluster.roster if n not in cluster.config.names]
        unseated = [v for v in cluster.voters if v in leaving or v not in cluster.config.voters]
        blocked = False
        for name in sorted(unseated):
            rest = cluster.voters - {name}
            if rest and self._alive(cluster, rest) >= len(rest) // 2 + 1:
                cluster.voters.discard(name)
            else:
                blocked = True
        for name in leaving:
            if name not in cluster.voters:
                cluster.gone.add(cluster.roster.pop(name))
        if blocked:
            self.doubt |= set(unseated)

    def _empty(self, node: Node, config: Declared, of: str) -> None:
        self._made += 1
        node.kind, node.cluster, node.directory, node.of, node.witness = "fresh", "", f"emptied {self._made}", of, ""
        if node.held is None or node.held.version <= config.version:
            node.held = config

    def _meet(self) -> None:
        """Members of one cluster, or those removed from it, hear of another that lists them."""
        for other in sorted(self.clusters.values(), key=lambda c: (-c.config.version, c.id)):
            tellers = [n for n in self._up("formed") if n.cluster == other.id]
            if other.ended or not tellers:
                continue
            for node in self._up():
                if node.kind not in ("formed", "removed") or node.cluster == other.id or node.name not in other.config.names:
                    continue
                mine = self.clusters.get(node.cluster)
                if mine is None or mine.ended or mine.config.version > other.config.version:
                    continue
                if mine.config == other.config and other.config.gospel in mine.roster:
                    continue
                left_out = other.config.gospel == "reset" or other.config.gospel in other.roster
                if left_out and other.config.confirms(node.cluster):
                    self._empty(node, other.config, other.id)

    def _form(self) -> None:
        for node in self._up("fresh"):
            config = node.held
            if config is None or config.seed != node.name:
                continue
            needed = [self.nodes[n] for n in config.required]
            if all(n.up and n.kind == "fresh" and n.held == config and not n.of for n in needed):
                if any(n.up and n.kind in ("formed", "bound") for n in (self.nodes[m] for m in config.names)):
                    continue
                self._made += 1
                id = f"new {self._made}"
                roster = {v: self.nodes[v].directory for v in config.voters}
                self.clusters[id] = Cluster(id, config, roster, set(config.voters), set(), False, (), set())
                for name in config.voters:
                    self.nodes[name].kind, self.nodes[name].cluster = "formed", id

    def _of(self, node: Node) -> Rest:
        if node.kind == "fresh":
            if node.held is None:
                return Rest("no_config")
            younger = [n.held.version for n in self._up() if n.held is not None]
            return Rest("not_listed" if node.name not in node.held.names else "wait", doubt=max(younger) > node.held.version)
        if node.kind in ("removed", "bound"):
            return Rest(node.kind, doubt=node.name in self.doubt)
        cluster = self.clusters.get(node.cluster)
        if cluster is None or not self.quorum(cluster):
            return Rest("no_quorum", node.cluster, doubt=node.name in self.doubt)
        if cluster.roster.get(node.name) != node.directory:
            return Rest("wait", doubt=node.name in self.doubt)
        return Rest("active", node.cluster, cluster.config.version, doubt=node.name in self.doubt)


def _recalled(world: World, broker: Broker) -> dict[str, tuple[str, str]]:
    formation = broker.formation
    if formation is None:
        return {}
    hellos = {n: formation._books.peers.known(n) for n, other in world.brokers.items() if not other.up}
    return {n: ("bound" if h.condition == "accepted" else h.condition, h.cluster_id) for n, h in hellos.items() if h is not None}
