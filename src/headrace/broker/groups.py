"""Cohorts of queues and reader groups of streams at work: who is a member, what the group machine decides, and carrying it out at the partitions.

A cohort's decision is a gate at each partition; a reader group's opens and closes readers. Both tell the member with an ``Assigned`` event.
A cooperative reader is first parked and loses a partition once it holds nothing of it any more, or the machine's time-out has passed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.broker.attach import start_reading
from headrace.broker.queue_partition import QueuePartition
from headrace.broker.stream_partition import StreamPartition
from headrace.broker.subscription import QueueSubscription, StreamSubscription, Subscription
from headrace.core.assignment import STRATEGIES
from headrace.core.groups import Assignment, Group
from headrace.model.errors import Conflict, HeadraceError, Invalid
from headrace.wire import control

if TYPE_CHECKING:
    from headrace.broker.broker import Broker

Key = tuple[str, str]
"""(id of the queue or stream, name of the group)."""


class Groups:
    """All groups of this broker."""

    def __init__(self, broker: Broker) -> None:
        self.broker = broker
        self._groups: dict[Key, Group] = {}
        self._members: dict[Key, dict[str, Subscription]] = {}
        self._parting: dict[Key, dict[tuple[str, int], int]] = {}
        """Partitions that cooperative members are giving up: (member, partition) -> generation."""

    # ------------------------------------------------------------ membership

    def check_alone(self, item_id: str, cohort: str) -> None:
        """Raises ``Conflict`` if the queue's consumers are of another cohort (or of none, while this one is)."""
        for id, name in self._groups:
            if id == item_id and name != cohort:
                raise Conflict(
                    f"this queue is consumed by the cohort {name!r}, exclusively", hint="join that cohort, or wait until its members are gone"
                )

    def join_cohort(self, subscription: QueueSubscription, now_ms: int) -> None:
        """Makes a consumer a member; its partitions' gates follow."""
        item = subscription.item
        assert item.queue is not None
        key = (item.id, subscription.group)
        group = self._groups.get(key)
        if group is None:
            others = [
                s
                for p in self.broker.loaded(item)
                if isinstance(p, QueuePartition)
                for s in p.subscriptions.values()
                if s.group != subscription.group
            ]
            if others:
                raise Conflict("this queue has consumers that are in no cohort", hint="let all consumers of a queue join the cohort")
            group = self._groups[key] = Group(
                len(item.partitions),
                grace_ms=item.queue.cohort_grace_ms,
                reconnect_grace_ms=self.broker.config.connection.reconnect_grace_ms,
                target=item.queue.cohort_target,
            )
        self._join(key, group, subscription, subscription.asked.member, now_ms)

    def join_readers(self, subscription: StreamSubscription, now_ms: int) -> None:
        """Makes a reader a member; the partitions it is given are opened."""
        item, asked = subscription.item, subscription.asked
        if asked.strategy not in STRATEGIES:
            raise Invalid(f"a strategy is one of {', '.join(STRATEGIES)}, not {asked.strategy!r}")
        key = (item.id, subscription.group)
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = Group(
                len(item.partitions),
                strategy=asked.strategy,
                reconnect_grace_ms=self.broker.config.connection.reconnect_grace_ms,
                generation=max((p.machine.generation for p in self.broker.loaded(item) if isinstance(p, StreamPartition)), default=0),
            )
        elif group.strategy != asked.strategy:
            raise Conflict(f"group {subscription.group!r} uses the strategy {group.strategy}; all members name the same")
        self._join(key, group, subscription, asked.member, now_ms)

    def _join(self, key: Key, group: Group, subscription: Subscription, static_name: str, now_ms: int) -> None:
        session = subscription.session
        member = f"{session.token}/{subscription.token}" if subscription.token else f"#{subscription.id}"
        subscription.member = member
        self._members.setdefault(key, {})[member] = subscription
        try:
            told = group.join(member, static_name, now_ms)
        except HeadraceError:
            self._members[key].pop(member, None)
            self._drop_if_empty(key)
            raise
        for assignment in told:
            self._carry_out(key, group, assignment, quiet=assignment.member == member)
        self._gate(key, group)

    def left(self, subscription: Subscription, now_ms: int) -> None:
        """A member's subscription ended for good."""
        key = (subscription.item.id, subscription.group)
        group = self._groups.get(key) if subscription.group else None
        if group is None or self._members[key].get(subscription.member) is not subscription:
            return
        del self._members[key][subscription.member]
        self._tell(key, group, group.leave(subscription.member, now_ms))

    def suspended(self, subscription: Subscription, now_ms: int) -> None:
        """A member's connection broke; it keeps its seat for the grace."""
        group = self._groups.get((subscription.item.id, subscription.group)) if subscription.group else None
        if group is not None:
            group.suspend(subscription.member, now_ms)

    def assignment(self, subscription: Subscription) -> tuple[tuple[int, ...], int]:
        """(partitions, generation) of a subscription; all of them without a group."""
        group = self._groups.get((subscription.item.id, subscription.group)) if subscription.group else None
        found = group.assignment(subscription.member) if group is not None else None
        if found is None:
            return tuple(range(len(subscription.item.partitions))), 0
        return found.partitions, found.generation

    def tick(self, now_ms: int) -> None:
        """Once a second: graces that are over, cooperative hand-overs that are done."""
        for key, group in list(self._groups.items()):
            self._tell(key, group, group.tick(now_ms))
            for (member, number), generation in list(self._parting.get(key, {}).items()):
                subscription = self._members.get(key, {}).get(member)
                partition = subscription.partitions.get(number) if isinstance(subscription, StreamSubscription) else None
                if partition is not None and subscription is not None:
                    reader = partition.machine.readers.get(subscription.id)
                    if reader is not None and reader.held:
                        continue
                self._part(key, member, number)
                if not any(m == member for m, _ in self._parting.get(key, {})):
                    self._tell(key, group, group.released(member, generation, now_ms))
            self._drop_if_empty(key)

    def view(self, item_id: str) -> dict[str, object]:
        """What admin shows of the groups of one queue or stream."""
        return {name: group.view() for (id, name), group in self._groups.items() if id == item_id}

    # ------------------------------------------------------------ carrying out

    def _tell(self, key: Key, group: Group, told: list[Assignment]) -> None:
        for assignment in told:
            self._carry_out(key, group, assignment)
        if told:
            self._gate(key, group)
        self._drop_if_empty(key)

    def _carry_out(self, key: Key, group: Group, assignment: Assignment, *, quiet: bool = False) -> None:
        subscription = self._members.get(key, {}).get(assignment.member)
        if subscription is None:
            return
        starts: dict[int, int] = {}
        if isinstance(subscription, StreamSubscription):
            subscription.generation = assignment.generation
            for number in assignment.revoked:
                if group.strategy == "cooperative" and number in subscription.partitions:
                    subscription.partitions[number].machine.park(subscription.id)
                    self._parting.setdefault(key, {})[assignment.member, number] = assignment.generation
                else:
                    self._close(subscription, number)
            for number in assignment.partitions:
                if number not in subscription.partitions and subscription.sink is not None:
                    isolated = self.broker.partition(subscription.item, number).quarantined
                    if isolated:
                        subscription.isolated(number, isolated)
                    else:
                        starts[number] = start_reading(self.broker, subscription, number)
        if not quiet and subscription.sink is not None:
            subscription.sink.event(
                control.Assigned(
                    channel=subscription.channel,
                    generation=assignment.generation,
                    partitions=assignment.partitions,
                    revoked=assignment.revoked,
                    starts=starts,
                )
            )
            self.broker.touch(subscription.sink)

    def _gate(self, key: Key, group: Group) -> None:
        """Lets each partition of a cohort's queue serve its holder only."""
        for partition in list(self.broker.partitions.values()):
            if isinstance(partition, QueuePartition) and partition.item.id == key[0]:
                held = group.holder(partition.number)
                subscription = self._members.get(key, {}).get(held[0]) if held is not None else None
                partition.machine.gate(subscription.id if subscription is not None else None, group.generation)
                self.broker.mark(partition)

    def _part(self, key: Key, member: str, number: int) -> None:
        self._parting.get(key, {}).pop((member, number), None)
        subscription = self._members.get(key, {}).get(member)
        if isinstance(subscription, StreamSubscription):
            self._close(subscription, number)

    @staticmethod
    def _close(subscription: StreamSubscription, number: int) -> None:
        partition = subscription.partitions.pop(number, None)
        if isinstance(partition, StreamPartition):
            partition.close_reader(subscription)

    def _drop_if_empty(self, key: Key) -> None:
        group = self._groups.get(key)
        if group is not None and not len(group):
            del self._groups[key]
            self._members.pop(key, None)
            self._parting.pop(key, None)
            for partition in self.broker.partitions.values():
                if isinstance(partition, QueuePartition) and partition.item.id == key[0]:
                    partition.machine.ungate()
                    self.broker.mark(partition)
