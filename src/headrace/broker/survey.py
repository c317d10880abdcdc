"""The whole cluster as one picture, shown by whichever broker is asked: brokers, partitions, copies and their lag, and what is amiss.

Owns the gathering: what is recorded this broker knows, how a partition stands only its owner, what cannot be planned only the controller. Each of
them is asked once a picture, all at the same time. Decides nothing and changes nothing.

S1 an answer comes within ``ASK_MS`` and a little, whoever is silent: what only they know is shown as unknown, with the reason. S2 a picture holds the
partitions of at most ``PARTITIONS_SHOWN_MAX`` and one more name.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
from msgspec import Meta
from msgspec.structs import replace

from headrace import __version__
from headrace.broker.standing import Standing, idle, standing
from headrace.cluster.control.declared import item
from headrace.core.control.changes import Finding
from headrace.core.control.liveness import Verdict, verdict
from headrace.model.cluster import Assignment, BrokerId, Registered
from headrace.model.errors import HeadraceError, Malformed
from headrace.model.ids import PartitionId
from headrace.wire import control
from headrace.wire.peer import Service
from headrace.wire.topology import BrokerRow, FollowerRow, PartitionRow

if TYPE_CHECKING:
    from headrace.broker.broker import Broker
    from headrace.broker.cluster import Cluster
    from headrace.cluster.transport import Transport

ASK_MS: Final = 1_000
"""A broker that does not answer within this time is not waited for."""
PARTITIONS_SHOWN_MAX: Final = 5_000
ATTENTION_MAX: Final = 50
"""Sentences; what there is more of the rows show."""
NAMED_MAX: Final = 8
"""Partitions of which the same is to be said that one sentence names."""
WORST: Final = ("unavailable", "quarantined", "isolated", "below_floor", "unknown", "starting", "moving")
SHOWN: Final = {"alive": "alive", "doubted": "suspect", "dead": "dead"}


class _Asked(msgspec.Struct, frozen=True):
    """A request of ``Service.SURVEY``: how do these stand, of those that you own?"""

    partitions: tuple[Annotated[int, Meta(ge=0)], ...]


class _Told(msgspec.Struct, frozen=True):
    """Its answer; ``findings`` and ``alarms`` of the controller alone."""

    standings: tuple[Standing, ...] = ()
    findings: tuple[Finding, ...] = ()
    alarms: tuple[str, ...] = ()
    left: str = ""
    """Of the data of partitions that were moved away from it."""


_encode = msgspec.msgpack.Encoder().encode
_asked = msgspec.msgpack.Decoder(_Asked).decode
_told = msgspec.msgpack.Decoder(_Told).decode


class Survey:
    """See the module's head. Of a broker in a cluster."""

    def __init__(self, broker: Broker, cluster: Cluster, transport: Transport) -> None:
        self._broker = broker
        self._cluster = cluster
        transport.on_request(Service.SURVEY, self._answer)

    async def topology(self, r: control.ClusterTopology) -> control.ClusterTopologyInfo:
        """The picture now."""
        cluster, picturing = self._cluster, self._cluster.control.picturing
        wanted = list(dict.fromkeys(r.names)) if r.names else picturing.declared
        rows: list[PartitionRow] = []
        more = False
        for name in sorted(n for n in wanted if n > r.after and n in picturing.declared):
            if len(rows) >= _limit(r):
                more = True
                break
            rows += self._recorded(name)
        judged = self._judged()
        told, unanswered = await self._gather(rows)
        standings = {s.partition: s for one in told.values() for s in one.standings}
        findings = {f.partition: f for one in told.values() for f in one.findings if f.partition is not None}
        alarms = tuple(dict.fromkeys(a for one in told.values() for a in one.alarms))
        names = {id: registered.name for id, registered in picturing.brokers().items()}
        rows = [self._joined(row, standings.get(row.id), findings.get(PartitionId(row.id)), judged, unanswered, names) for row in rows]
        brokers = self._brokers(judged, {id: one.left for id, one in told.items()})
        return control.ClusterTopologyInfo(
            broker=self._broker.id,
            state=self._broker.state,
            cluster=cluster.id,
            brokers=brokers,
            partitions=tuple(rows),
            attention=_attention(brokers, rows, alarms, unanswered, names),
            unanswered=dict(unanswered),
            controller=picturing.holder.broker,
            controller_why=picturing.holder.reason,
            term=picturing.holder_version,
            planning=picturing.planning.mode,
            more=more,
        )

    # ------------------------------------------------------------ what is recorded

    def _recorded(self, name: str) -> Iterator[PartitionRow]:
        picturing = self._cluster.control.picturing
        declared = picturing.declared[name]
        kind = "queue" if declared.queue is not None else "stream"
        for number, pid in enumerate(declared.partitions):
            stored = picturing.stored.get(pid)
            row = PartitionRow(name=name, kind=kind, partition=number, id=pid, routing_version=declared.routing_version, factor=item(declared).factor)
            yield row if stored is None else _assigned(row, stored.assignment)

    def _judged(self) -> dict[BrokerId, Verdict]:
        picturing = self._cluster.control.picturing
        now_ms = picturing.now_ms()
        found: dict[BrokerId, Verdict] = {}
        for id in picturing.brokers():
            seen = picturing.seen(id)
            if id == self._broker.id:
                found[id] = Verdict("alive", "it is the one that was asked")
            elif seen is not None:
                found[id] = verdict(seen, picturing.settings, now_ms)
        return found

    def _brokers(self, judged: Mapping[BrokerId, Verdict], left: Mapping[str, str]) -> tuple[BrokerRow, ...]:
        picturing = self._cluster.control.picturing
        voters = self._cluster.voters()
        owns = Counter(s.assignment.owner for s in picturing.stored.values())
        copies = Counter(b for s in picturing.stored.values() for b in s.assignment.copies)
        known = picturing.brokers()
        for id in copies:  # of a broker that was gone before this one began to look
            known.setdefault(id, Registered(id=id, name=id, incarnation=picturing.holder.incarnation))
        gone = Verdict("dead", "it has not been registered since the broker that was asked looks")
        now_ms = picturing.now_ms()
        rows = []
        for id, registered in sorted(known.items(), key=lambda row: (row[1].name, row[0])):
            seen, judgement = picturing.seen(id), judged.get(id, gone)
            rows.append(
                BrokerRow(
                    id=id,
                    name=registered.name,
                    state=SHOWN[judgement.state],
                    why=left.get(id, "") if judgement.state == "alive" else judgement.reason,
                    incarnation="" if seen is None else registered.incarnation,
                    release=registered.release,
                    rack=registered.rack,
                    host=registered.host,
                    addresses=registered.addresses,
                    voter=registered.name in voters,
                    controller=id == picturing.holder.broker,
                    draining=registered.draining,
                    registered=seen is not None and seen.present,
                    for_ms=0 if seen is None else max(0, now_ms - seen.since_ms),
                    owns=owns[id],
                    copies=copies[id],
                )
            )
        return tuple(rows)

    # ------------------------------------------------------------ what others know

    async def _gather(self, rows: Iterable[PartitionRow]) -> tuple[dict[str, _Told], dict[str, str]]:
        """What every owner, and the controller, says; and who did not, and why."""
        wanted: dict[str, list[int]] = {}
        for row in rows:
            if row.owner:
                wanted.setdefault(row.owner, []).append(row.id)
        holder = self._cluster.control.picturing.holder.broker
        if holder:
            wanted.setdefault(holder, [])
        told: dict[str, _Told] = {}
        unanswered: dict[str, str] = {}

        needed = set(wanted)
        for id in self._cluster.control.picturing.present():
            wanted.setdefault(id, [])  # what it says of itself is shown if it answers

        async def ask(id: str, partitions: list[int]) -> None:
            try:
                told[id] = await self._ask(BrokerId(id), partitions)
            except HeadraceError as e:
                if id in needed:
                    unanswered[id] = str(e)

        await asyncio.gather(*(ask(id, partitions) for id, partitions in sorted(wanted.items())))
        return told, dict(sorted(unanswered.items()))

    async def _ask(self, id: BrokerId, partitions: list[int]) -> _Told:
        asked = _Asked(tuple(partitions))
        if id == self._broker.id:
            return self._tell(asked)
        answer = await self._cluster.request(id, _encode(asked), timeout_ms=ASK_MS, service=Service.SURVEY)
        try:
            return _told(answer)
        except (msgspec.DecodeError, UnicodeDecodeError) as e:
            raise Malformed(f"its answer cannot be read: {e}") from None

    async def _answer(self, peer: BrokerId, body: bytes) -> bytes:
        try:
            asked = _asked(body)
        except (msgspec.DecodeError, UnicodeDecodeError) as e:
            raise Malformed(f"what broker {peer} asks cannot be read: {e}") from None
        return _encode(self._tell(asked))

    def _tell(self, asked: _Asked) -> _Told:
        cluster = self._cluster
        now_ms = cluster.replicas_now_ms()
        found: list[Standing] = []
        for pid in asked.partitions:
            copy, dormant = cluster.copies.get(pid), cluster.dormant.document(pid)
            if copy is not None and copy.document.owner == self._broker.id:
                found.append(standing(copy, now_ms))
            elif dormant is not None and dormant.owner == self._broker.id:
                found.append(idle(dormant))
        standings = tuple(found)
        view = cluster.control.controller.view()
        left = _left(cluster.leftovers.waiting)
        return _Told(standings, view.findings, view.alarms, left) if view.elected else _Told(standings, left=left)

    def _joined(
        self, row: PartitionRow, said: Standing | None, finding: Finding | None, judged: Mapping[BrokerId, Verdict], unanswered: Mapping[str, str],
        names: Mapping[BrokerId, str],
    ) -> PartitionRow:  # fmt: skip
        """What is recorded of a partition with what its owner says; without that, why there is nothing."""
        if said is not None and said.epoch >= row.epoch:
            why = said.why or (finding.reason if finding is not None else "")
            return replace(
                row, state=said.state, why=why, waits_for=said.waits_for, epoch=said.epoch, high_watermark=said.high_watermark, end=said.end,
                followers=_followers(row, said.followers),
            )  # fmt: skip
        waits_for: tuple[str, ...] = finding.waits_for if finding is not None else ()
        if not row.owner:
            return replace(row, state="unavailable", why="it has no owner yet" if finding is None else finding.reason, waits_for=waits_for)
        owner, judgement = BrokerId(row.owner), judged.get(BrokerId(row.owner))
        who = f"its owner {names.get(owner, owner)}"
        followers = _followers(row, ())
        if judgement is None or judgement.state == "dead":
            why = f"{who} is dead" + ("" if judgement is None else f": {judgement.reason}")
            if finding is not None:
                why = f"{why}; {finding.reason}"
            return replace(row, state="unavailable", why=why, waits_for=waits_for or (row.owner,), followers=followers)
        if row.owner in unanswered:
            return replace(row, state="unknown", why=f"{who} did not answer: {unanswered[row.owner]}", waits_for=(row.owner,), followers=followers)
        why = f"{who} has not begun to serve it" + ("" if finding is None else f"; {finding.reason}")
        return replace(row, state="starting", why=why, waits_for=waits_for, followers=followers)


async def alone(broker: Broker, r: control.ClusterTopology) -> control.ClusterTopologyInfo:
    """The same of a broker that is alone: it owns everything, and nobody copies."""
    name = broker.config.broker.name or broker.id
    if r.names:
        items, more = [i for n in sorted(dict.fromkeys(r.names)) if n > r.after and (i := broker.catalogue.find(n)) is not None], False
    else:
        items, more = await broker.catalogue.page(after=r.after, limit=_limit(r))
    rows: list[PartitionRow] = []
    damaged = broker.store.damaged()
    for at, one in enumerate(items):
        if len(rows) >= _limit(r):
            more = at < len(items) or more
            break
        for number, pid in enumerate(one.partitions):
            loaded = broker.partitions.get(pid)
            why = damaged[pid].why if pid in damaged else "" if loaded is None else loaded.quarantined
            rows.append(
                PartitionRow(
                    name=one.name, kind=one.kind, partition=number, id=pid, owner=broker.id, epoch=0 if loaded is None else loaded.epoch,
                    level="local_durable", floor=1, factor=1, replicas=(broker.id,), routing_version=one.routing_version, why=why,
                    state="quarantined" if why else "idle" if loaded is None else "serving",
                )
            )  # fmt: skip
    listeners = {"native": broker.listeners.get("url", ""), "admin": broker.listeners.get("admin", "")}
    me = BrokerRow(
        id=broker.id, name=name, state="alive", incarnation=broker.incarnation, release=__version__, controller=True, registered=True,
        addresses={kind: url.partition("://")[2] for kind, url in listeners.items() if url}, owns=len(rows), copies=len(rows),
    )  # fmt: skip
    return control.ClusterTopologyInfo(
        broker=broker.id, state=broker.state, brokers=(me,), partitions=tuple(rows), controller=broker.id, more=more,
        attention=_attention((me,), rows, (), {}, {BrokerId(broker.id): name}),
    )  # fmt: skip


def waiting(status: Mapping[str, Any], admin: str) -> control.ClusterTopologyInfo:
    """The same while no broker serves here: the members as the formation (``status``, as of its driver) sees them, and on whom it waits."""
    me = status["name"]
    rows = [BrokerRow(id=status.get("node_id", ""), name=me, state="waiting", why=status["reason"], addresses={"admin": admin} if admin else {})]
    for name, peer in status.get("peers", {}).items():
        reachable = peer["reachable"]
        why = peer.get("reason", "") if reachable else peer["trouble"] or "nothing has been heard of it"
        rows.append(
            BrokerRow(
                id="", name=name, state="waiting" if reachable else "unreachable", why=why, addresses={"peer": peer["address"]},
                voter=peer["role"] == "voter",
            )
        )  # fmt: skip
    rows.sort(key=lambda row: row.name)
    attention = [f"{me} does not serve: {status['reason']}", *(f"it waits for {one['name']}" for one in status.get("waits_for", ()))]
    id, cluster = status.get("node_id", ""), status.get("cluster_id", "")
    return control.ClusterTopologyInfo(broker=id, state=status["state"], cluster=cluster, brokers=tuple(rows), attention=tuple(attention))


def _left(waiting: Mapping[int, str]) -> str:
    """What is said of the data of partitions that were moved to other brokers."""
    if not waiting:
        return ""
    what = f"has data of {len(waiting)} {'partitions that were' if len(waiting) > 1 else 'partition that was'} moved to others"
    why = next(filter(None, waiting.values()), "")
    return f"it {what}, and erases them" + (f" later: {why}" if why else "")


def _limit(r: control.ClusterTopology) -> int:
    return max(1, min(r.limit, PARTITIONS_SHOWN_MAX))


def _assigned(row: PartitionRow, a: Assignment) -> PartitionRow:
    return replace(
        row, owner=a.owner, epoch=a.epoch, generation=a.generation, version=a.version, level=a.level, floor=a.floor, replicas=a.replicas, isr=a.isr,
        elr=a.elr, learners=a.learners, leaving=a.leaving, preferred=a.preferred, reason=a.reason,
    )  # fmt: skip


def _followers(row: PartitionRow, said: tuple[FollowerRow, ...]) -> tuple[FollowerRow, ...]:
    """A row for every copy that is recorded, whether the owner spoke of it or not."""
    known = {f.broker: f for f in said}
    copies = (b for b in (*row.replicas, *row.learners) if b != row.owner)
    return tuple(known.get(b) or FollowerRow(broker=b, in_sync=b in row.isr) for b in copies)


def _attention(
    brokers: Iterable[BrokerRow], rows: Iterable[PartitionRow], alarms: Iterable[str], unanswered: Mapping[str, str], names: Mapping[BrokerId, str]
) -> tuple[str, ...]:
    """Sentences, the worst first."""

    def name(id: str) -> str:
        return names.get(BrokerId(id), id)

    found = list(alarms)
    alike: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        behind = [name(f.broker) for f in row.followers if not f.in_sync]
        waits = f" (waits for {', '.join(map(name, row.waits_for))})" if row.waits_for else ""
        if row.state in WORST:
            key = row.state, f"{row.state.replace('_', ' ')}: {row.why}{waits}"
        elif behind:
            key = "", f"not fully copied: {', '.join(sorted(behind))} not in sync"
        elif 0 < len(row.replicas) < row.factor:
            key = "", f"not fully copied: {len(row.replicas)} of {row.factor} copies"
        elif row.why:
            key = "", f"not as it should be: {row.why}{waits}"
        else:
            continue
        alike.setdefault(key, []).append(f"{row.name}/{row.partition}")
    for (_, what), labels in sorted(alike.items(), key=lambda item: WORST.index(item[0][0]) if item[0][0] else len(WORST)):
        many = f", {', '.join(labels[1:NAMED_MAX])}{f' and {len(labels) - NAMED_MAX} more' if labels[NAMED_MAX:] else ''}" if labels[1:] else ""
        found.append(f"{labels[0]}{many} {'are' if many else 'is'} {what}")
    found += [f"broker {b.name} is {b.state}: {b.why}" for b in brokers if b.state != "alive"]
    found += [f"broker {name(id)} did not answer: {why}" for id, why in unanswered.items()]
    if len(found) > ATTENTION_MAX:
        found[ATTENTION_MAX - 1 :] = [f"and {len(found) - ATTENTION_MAX + 1} more"]
    return tuple(found)
