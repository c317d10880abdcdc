"""Cohorts of queues and reader groups of streams at work: who is a member, what the group machine decides, and telling the members.

A group lives where its home partition is served (``core.group_records``), and what it decides is in that partition's journal. A lone broker
carries a decision out at once, since it serves all partitions: a cohort's is a gate at each partition, a reader group's opens and closes readers.
In a cluster a member (``Membership``) is only told, once the decision is committed; it subscribes to each partition where that is served, and there
``holding`` refuses who is out of date. Members are told with ``Assigned``.

A cooperative reader of a lone broker is first parked, and loses a partition once it holds nothing of it any more or the machine's time-out is over.
In a cluster every move waits for ``Released`` of who had the partition, or for the end of its seat.

While the home of a lone broker's group is quarantined the group goes on without a journal, and its members with all partitions that are sound. The
repaired home takes it over as it is by then.
"""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from headrace.broker.attach import start_reading
from headrace.broker.partition import Partition
from headrace.broker.queue_partition import QueuePartition
from headrace.broker.stream_partition import StreamPartition
from headrace.broker.subscription import Membership, QueueSubscription, StreamSubscription, Subscription, member_id
from headrace.core.assignment import STRATEGIES, Strategy
from headrace.core.groups import SNAPSHOT_VERSION, Assignment, Group
from headrace.log import get_logger
from headrace.model.errors import Conflict, Damaged, HeadraceError, Invalid, Unavailable
from headrace.wire import control

if TYPE_CHECKING:
    from headrace.broker.broker import Broker
    from headrace.broker.catalogue import Item

Key = tuple[str, str]
"""(id of the queue or stream, name of the group)."""
_log = get_logger("broker")


class Hosted:
    """A group whose home is served here."""

    def __init__(self, name: str, group: Group, at: Partition) -> None:
        self.name = name
        self.group = group
        self.home = at
        self.members: dict[str, Subscription] = {}
        """Those that are here or will be back; a restored group has others."""
        self.parting: dict[tuple[str, int], int] = {}
        """Partitions that cooperative members are giving up: (member, partition) -> generation."""


class Groups:
    """All groups of this broker."""

    def __init__(self, broker: Broker) -> None:
        self.broker = broker
        self._groups: dict[Key, Hosted] = {}

    # ------------------------------------------------------------ homes

    def found(self, at: Partition) -> None:
        """``at`` is served from now on: its groups go on, and who does not come back within the grace loses its seat."""
        for hosted in list(self._groups.values()):
            if hosted.home.pid == at.pid and hosted.home is not at:
                self._take_over(hosted, at)
        for name in at.groups.homed:
            if at.item.home(name) == at.number:  # else a repartition is about to give it another home, or has
                self._open(at, name)

    def _take_over(self, hosted: Hosted, at: Partition) -> None:
        """A group that went on while its home was quarantined has it again; it begins above whatever its home knew of it."""
        begin = max(at.groups.floor, self._generation(at))
        kept = at.groups.homed.get(hosted.name)
        if kept is not None:
            before = Group(0)
            with suppress(Damaged):
                before.restore(SNAPSHOT_VERSION, kept, self.broker.now_ms)
            begin = max(begin, before.generation)
        hosted.home = at
        hosted.group.begin_above(begin)
        if not at.quarantined:
            at.groups.put(hosted.name, hosted.group.snapshot())
            self.broker.mark(at)

    def repaired(self, at: Partition) -> None:
        """Who was given ``at`` of a lone broker while that was quarantined has it now."""
        for hosted in list(self._groups.values()):
            held = hosted.group.holder(at.number) if hosted.home.item.id == at.item.id else None
            subscription = hosted.members.get(held[0]) if held is not None else None
            if not isinstance(subscription, StreamSubscription) or subscription.sink is None or at.number in subscription.partitions:
                continue
            assignment = hosted.group.assignment(subscription.member)
            assert assignment is not None
            try:
                starts = {at.number: start_reading(self.broker, subscription, at.number)}
            except HeadraceError as e:
                error = Unavailable(f"partition {at.number} of {at.item.name!r} was repaired: {e}", hint="subscribe again")
                self.broker.sessions.end(subscription, error)
            else:
                self._say(subscription, assignment, starts)

    def lost(self, at: Partition) -> None:
        """``at`` is not served here any more: its groups go on elsewhere, and their members are told so; a lone broker's wait for its repair."""
        if self.broker.cluster is None and at.quarantined and at.barred is None:
            return
        error = at.barred or Unavailable(f"partition {at.number} of {at.item.name!r} is made anew", hint="join again in a moment")
        for key, hosted in list(self._groups.items()):
            if hosted.home is at:
                del self._groups[key]
                for subscription in list(hosted.members.values()):
                    if isinstance(subscription, Membership):
                        self.broker.sessions.end(subscription, error)

    def _open(self, at: Partition, name: str, strategy: Strategy = "sticky") -> Hosted:
        key = (at.item.id, name)
        hosted = self._groups.get(key)
        if hosted is not None and hosted.home is at:
            return hosted
        item, queue = at.item, at.item.queue
        group = Group(
            len(item.partitions),
            strategy=strategy,
            reconnect_grace_ms=self.broker.config.connection.reconnect_grace_ms,
            generation=max(at.groups.floor, self._generation(at)),
            handover=self.broker.cluster is not None,
        )
        if queue is not None:
            group.grace_ms, group.target = queue.cohort_grace_ms, queue.cohort_target
        kept = at.groups.homed.get(name)
        if kept is not None:
            try:
                group.restore(SNAPSHOT_VERSION, kept, self.broker.now_ms)
            except Damaged as e:
                _log.error("group %r of %r begins anew: %s", name, item.name, e)
            if self.broker.cluster is None:  # else what a member was told was in the journal before
                group.begin_above(self._generation(at))
            group.configure(self.broker.now_ms, partition_count=len(item.partitions), target=queue.cohort_target if queue is not None else None)
        hosted = self._groups[key] = Hosted(name, group, at)
        return hosted

    def _generation(self, at: Partition) -> int:
        """The highest one that a cursor here was taken in: of all partitions if that is all there is to go by."""
        blind = self.broker.cluster is None and at.quarantined
        partitions = self.broker.loading.served(at.item) if blind else self.broker.loading.of(at.item)
        return max((p.machine.generation for p in partitions if isinstance(p, StreamPartition)), default=0)

    def _silent(self, hosted: Hosted) -> bool:
        """Whether there is no journal to write to for now."""
        return self.broker.cluster is None and bool(hosted.home.quarantined)

    def _journal(self, hosted: Hosted) -> None:
        for _, state in hosted.group.take_journal():
            if not self._silent(hosted):
                hosted.home.groups.put(hosted.name, state)
                self.broker.mark(hosted.home)

    # ------------------------------------------------------------ membership

    def check_alone(self, item_id: str, cohort: str) -> None:
        """Raises ``Conflict`` if the queue's consumers are of another cohort (or of none, while this one is)."""
        for id, name in self._groups:
            if id == item_id and name != cohort:
                raise Conflict(
                    f"this queue is consumed by the cohort {name!r}, exclusively", hint="join that cohort, or wait until its members are gone"
                )

    def join_cohort(self, subscription: QueueSubscription, now_ms: int) -> None:
        """Makes a consumer of a lone broker a member; its partitions' gates follow."""
        item = subscription.item
        if (item.id, subscription.group) not in self._groups:
            others = [
                s
                for p in self.broker.loading.of(item)
                if isinstance(p, QueuePartition)
                for s in p.subscriptions.values()
                if s.group != subscription.group
            ]
            if others:
                raise Conflict("this queue has consumers that are in no cohort", hint="let all consumers of a queue join the cohort")
        at = self.broker.loading.partition(item, item.home(subscription.group))
        self._join(self._open(at, subscription.group), subscription, subscription.asked.member, now_ms)

    def join_readers(self, subscription: StreamSubscription, now_ms: int) -> None:
        """Makes a reader of a lone broker a member; the partitions it is given are opened."""
        at = self.broker.loading.partition(subscription.item, subscription.item.home(subscription.group))
        hosted = self._open(at, subscription.group, self._strategy(subscription.asked.strategy))
        self._same_strategy(hosted, subscription.asked.strategy)
        self._join(hosted, subscription, subscription.asked.member, now_ms)

    def join(self, subscription: Membership, at: Partition, now_ms: int) -> None:
        """Makes somebody a member of a group whose home is ``at``."""
        asked = subscription.asked
        if subscription.item.queue is not None:
            self.check_alone(subscription.item.id, asked.group)
            hosted = self._open(at, asked.group)
        else:
            hosted = self._open(at, asked.group, self._strategy(asked.strategy))
            self._same_strategy(hosted, asked.strategy)
        self._join(hosted, subscription, asked.member, now_ms)

    @staticmethod
    def _strategy(strategy: str) -> Strategy:
        if strategy not in STRATEGIES:
            raise Invalid(f"a strategy is one of {', '.join(STRATEGIES)}, not {strategy!r}")
        return strategy

    @staticmethod
    def _same_strategy(hosted: Hosted, strategy: str) -> None:
        if hosted.group.strategy != strategy:
            raise Conflict(f"group {hosted.name!r} uses the strategy {hosted.group.strategy}; all members name the same")

    def _join(self, hosted: Hosted, subscription: Subscription, static_name: str, now_ms: int) -> None:
        member = member_id(subscription.session, subscription.token) if subscription.token else f"#{subscription.id}"
        subscription.member = member
        before = hosted.members.get(member)
        hosted.members[member] = subscription
        try:
            told = hosted.group.join(member, static_name, now_ms)
        except HeadraceError:
            if before is None:
                del hosted.members[member]
            else:
                hosted.members[member] = before
            self._drop_if_empty(hosted)
            raise
        self._journal(hosted)
        for assignment in told:
            self._carry_out(hosted, assignment, quiet=assignment.member == member)
        self._gate(hosted)

    def _hosted(self, subscription: Subscription) -> Hosted | None:
        """The group of which it is a member here."""
        hosted = self._groups.get((subscription.item.id, subscription.group)) if subscription.group else None
        return hosted if hosted is not None and hosted.members.get(subscription.member) is subscription else None

    def left(self, subscription: Subscription, now_ms: int) -> None:
        """A member's subscription ended for good. Who has a static name and only vanished keeps its seat for the grace."""
        hosted = self._hosted(subscription)
        if hosted is None:
            return
        del hosted.members[subscription.member]
        if subscription.session.sink is None and hosted.group.static(subscription.member):
            hosted.group.suspend(subscription.member, now_ms)
        else:
            self._tell(hosted, hosted.group.leave(subscription.member, now_ms))

    def suspended(self, subscription: Subscription, now_ms: int) -> None:
        """A member's connection broke; it keeps its seat for the grace."""
        hosted = self._hosted(subscription)
        if hosted is not None:
            hosted.group.suspend(subscription.member, now_ms)

    def released(self, subscription: Membership, generation: int, now_ms: int) -> None:
        """It uses nothing any more that it was not assigned in ``generation``."""
        hosted = self._hosted(subscription)
        if hosted is not None:
            self._tell(hosted, hosted.group.released(subscription.member, generation, now_ms))

    def assignment(self, subscription: Subscription) -> tuple[tuple[int, ...], int]:
        """(partitions, generation) of a subscription; all of them without a group."""
        hosted = self._hosted(subscription)
        if hosted is None:
            return tuple(range(len(subscription.item.partitions))), 0
        found = hosted.group.assignment(subscription.member)
        return (found.partitions, found.generation) if found is not None else ((), hosted.group.generation)

    def tick(self, now_ms: int) -> None:
        """Once a second: graces that are over, cooperative hand-overs that are done."""
        for hosted in list(self._groups.values()):
            group = hosted.group
            if hosted.home.barred is None:
                self._tell(hosted, group.tick(now_ms))
            for (member, number), generation in list(hosted.parting.items()):
                subscription = hosted.members.get(member)
                partition = subscription.partitions.get(number) if isinstance(subscription, StreamSubscription) else None
                if partition is not None and subscription is not None:
                    reader = partition.machine.readers.get(subscription.id)
                    if reader is not None and reader.held:
                        continue
                self._part(hosted, member, number)
                if not any(m == member for m, _ in hosted.parting):
                    self._tell(hosted, group.released(member, generation, now_ms))
            self._drop_if_empty(hosted)

    def repartitioned(self, item: Item) -> None:
        """A lone broker's queue has more or fewer partitions; a home among those that are given up moves."""
        for hosted in list(self._groups.values()):
            if hosted.home.item.id != item.id:
                continue
            number = item.home(hosted.name)
            if number != hosted.home.number:
                old, hosted.home = hosted.home, self.broker.loading.partition(item, number)
                hosted.home.groups.put(hosted.name, hosted.group.snapshot())
                self.broker.mark(hosted.home)
                old.groups.drop(hosted.name, hosted.group.generation)
                self.broker.mark(old)
            self._tell(hosted, hosted.group.configure(self.broker.now_ms, partition_count=len(item.partitions)))
            if self._groups.get((item.id, hosted.name)) is hosted:  # else it had no member left, and has ended
                self._gate(hosted)

    def view(self, item_id: str) -> dict[str, object]:
        """What admin shows of the groups of one queue or stream."""
        return {name: hosted.group.view() for (id, name), hosted in self._groups.items() if id == item_id}

    # ------------------------------------------------------------ carrying out

    def _tell(self, hosted: Hosted, told: list[Assignment]) -> None:
        self._journal(hosted)
        for assignment in told:
            self._carry_out(hosted, assignment)
        if told or not len(hosted.group):
            self._gate(hosted)
        self._drop_if_empty(hosted)

    def _carry_out(self, hosted: Hosted, assignment: Assignment, *, quiet: bool = False) -> None:
        subscription = hosted.members.get(assignment.member)
        if subscription is None:
            return
        if isinstance(subscription, Membership):
            hosted.home.when_committed(partial(self._say, subscription, assignment, {}))
            return
        starts: dict[int, int] = {}
        if isinstance(subscription, StreamSubscription):
            subscription.generation = assignment.generation
            for number in assignment.revoked:
                if hosted.group.strategy == "cooperative" and number in subscription.partitions:
                    subscription.partitions[number].machine.park(subscription.id)
                    hosted.parting[assignment.member, number] = assignment.generation
                else:
                    self._close(subscription, number)
            for number in assignment.partitions:
                if number not in subscription.partitions and subscription.sink is not None:
                    isolated = self.broker.loading.partition(subscription.item, number).quarantined
                    if isolated:
                        subscription.isolated(number, isolated)
                    else:
                        starts[number] = start_reading(self.broker, subscription, number)
        if not quiet:
            self._say(subscription, assignment, starts)

    def _say(self, subscription: Subscription, assignment: Assignment, starts: dict[int, int]) -> None:
        if subscription.sink is not None:
            event = control.Assigned(
                channel=subscription.channel,
                generation=assignment.generation,
                partitions=assignment.partitions,
                revoked=assignment.revoked,
                starts=starts,
            )
            subscription.sink.event(event)
            self.broker.touch(subscription.sink)

    def _gate(self, hosted: Hosted) -> None:
        """Lets each partition of a lone broker's cohort serve its holder only."""
        if self.broker.cluster is not None:
            return
        for partition in list(self.broker.partitions.values()):
            if isinstance(partition, QueuePartition) and partition.item.id == hosted.home.item.id:
                held = hosted.group.holder(partition.number)
                subscription = hosted.members.get(held[0]) if held is not None else None
                partition.machine.gate(subscription.id if subscription is not None else None, hosted.group.generation)
                self.broker.mark(partition)

    def _part(self, hosted: Hosted, member: str, number: int) -> None:
        hosted.parting.pop((member, number), None)
        subscription = hosted.members.get(member)
        if isinstance(subscription, StreamSubscription):
            self._close(subscription, number)

    @staticmethod
    def _close(subscription: StreamSubscription, number: int) -> None:
        partition = subscription.partitions.pop(number, None)
        if isinstance(partition, StreamPartition):
            partition.close_reader(subscription)

    def _drop_if_empty(self, hosted: Hosted) -> None:
        """A group ends with its last member, also those whose static name another one took: they are served nothing."""
        item = hosted.home.item
        if len(hosted.group) or hosted.members or self._groups.get((item.id, hosted.name)) is not hosted:
            return
        del self._groups[item.id, hosted.name]
        if hosted.name in hosted.home.groups.homed and not self._silent(hosted):
            hosted.home.groups.drop(hosted.name, hosted.group.generation)
            self.broker.mark(hosted.home)
        for partition in self.broker.partitions.values():
            if isinstance(partition, QueuePartition) and partition.item.id == item.id:
                partition.machine.ungate()
                self.broker.mark(partition)
