"""Bugs of a queue: who gets a message, how often and when, and what is remembered of that."""

from typing import Final

from headrace.sim.mutants.planting import DEATHS, Edit, Mutant

LEASES: Final = (
    Mutant(
        name="ack-not-journalled",
        wrong="the last run of acks of each tick is left out of the journal, so a restart delivers those messages again",
        notices=("I9", "I1", "I15"),
        edits=(Edit("core.queue.journalling:Journal._close", "    held_end = end\nself._acked(held_first, held_end)", "    held_end = end"),),
    ),
    Mutant(
        name="settle-confirmed-early",
        wrong="a settlement is answered before it is durable",
        notices=("I9", "I13"),
        edits=(Edit("broker.queue_partition:QueuePartition._answer", "self.when_committed(answer)", "answer()"),),
    ),
    Mutant(
        name="lease-not-journalled",
        wrong="leases are not journalled: after a restart the messages are ready, for anybody, as if never delivered",
        notices=("I9", "I10"),
        stir=DEATHS,
        edits=(Edit("core.queue.granting:Round._deliver", "state.journal.lease(start, stop, attempt, lease_ms, holder.token)", "pass"),),
    ),
    Mutant(
        name="leases-end-at-a-restart",
        wrong="leases that were restored run out at once instead of starting anew",
        notices=("I9", "I10"),
        stir=DEATHS,
        wants=("slow consumers",),
        edits=(Edit("core.queue.leases:Leases.activate", "lease.lease_ms, now_ms + lease.lease_ms,", "lease.lease_ms, now_ms,"),),
    ),
    Mutant(
        name="attempts-not-replayed",
        wrong="the delivery count of returned messages is lost over a restart",
        notices=("I9", "I1"),
        edits=(Edit("core.queue.replaying:_settlement", "state.set_failures(start, stop, attempts,", "state.set_failures(start, stop, 0,"),),
    ),
    Mutant(
        name="attempts-not-in-the-snapshot",
        wrong="a snapshot has no delivery counts",
        notices=("I9", "I18"),
        edits=(Edit("core.queue.snapshots:snapshot", "[(first, end, *failures) for first, end, failures in state.attempts]", "[]"),),
    ),
    Mutant(
        name="late-settle-of-another-accepted",
        wrong="a settlement counts for whoever sends it, also when the message is leased to somebody else by now",
        notices=("I10",),
        wants=("slow consumers", "confirmed settlements", "always late"),
        edits=(
            Edit(
                "core.queue.machine:QueueMachine.settle",
                "pieces = holder.leases.cut(0 if up_to else first, end)",
                "pieces = leases.cut_any(0 if up_to else first, end)",
            ),
            Edit("core.queue.machine:QueueMachine.settle", "lease.left -= stop - start", "pass"),
            Edit("core.queue.machine:QueueMachine.settle", "leases.count -= found", "pass"),
        ),
    ),
    Mutant(
        name="grant-for-the-connection-after",
        wrong="what was read from the disk for one connection is sent to the one that its consumer has by now, to which it is granted again",
        notices=("I10", "I9"),
        stir=("reset", "reset", "reset", "reset"),
        wants=("cold reads", "slow consumers"),
        edits=(
            Edit(
                "broker.queue_partition:QueuePartition._wanted",
                "if subscription is None or subscription.connection != connection:",
                "if subscription is None:",
            ),
            Edit(
                "broker.queue_partition:QueuePartition._emit_late",
                "if subscription is None or subscription.connection != connection:",
                "if subscription is None:",
            ),
        ),
    ),
    Mutant(
        name="sent-after-the-lease",
        wrong="what waited for the disk longer than its lease is sent all the same",
        notices=("I10", "I9"),
        stir=("slow", "slow", "slow"),
        wants=("cold reads", "slow consumers", "leases of a subscription"),
        edits=(
            Edit("broker.queue_partition:QueuePartition._wanted", "bool(self.machine.leased(grant.consumer_id, grant.attempt, first, end))", "True"),
            Edit(
                "broker.queue_partition:QueuePartition._emit_late",
                "for start, stop in self.machine.leased(grant.consumer_id, grant.attempt, first, end):",
                "for start, stop in ((first, end),):",
            ),
        ),
    ),
    Mutant(
        name="expired-lease-stays-with-its-holder",
        wrong="an expired message is ready again and yet still its old holder's: two consumers have it",
        notices=("I10", "I15", "error", "damage"),
        edits=(
            Edit(
                "core.queue.leases:Leases.expired",
                "for piece in self.cut(holder, start, stop)]",
                "for piece in holder.leases.pieces(start, stop)]",
            ),
        ),
    ),
    Mutant(
        name="lease-expiry-never-looked-at",
        wrong="nothing wakes a partition for a lease that runs out",
        notices=("I16", "I9"),
        edits=(Edit("core.queue.machine:QueueMachine.next_deadline_ms", "best = state.leases.next_deadline_ms()", "best = None"),),
    ),
    Mutant(
        name="extension-forgotten",
        wrong="an extended lease ends when it would have ended anyway",
        notices=("I10", "I9"),
        wants=("extend",),
        edits=(
            Edit(
                "core.queue.machine:QueueMachine.extend",
                "lease.attempt, lease_ms, now_ms + lease_ms, lease.first_failed_ms)",
                "lease.attempt, lease_ms, lease.deadline_ms, lease.first_failed_ms)",
            ),
        ),
    ),
    Mutant(
        name="uncounted-return-forgotten",
        wrong="messages that could not be sent leave their lease and are nowhere",
        notices=("I1", "I15", "I16"),
        edits=(
            Edit(
                "core.queue.machine:QueueMachine._return",
                "fates.give_back(self._state, pieces, reason, wall_ms, counted=counted)",
                "if counted:\n    fates.give_back(self._state, pieces, reason, wall_ms)",
            ),
        ),
    ),
    Mutant(
        name="session-end-forgets-subscriptions",
        wrong="the end of a lost session's grace does not end its subscriptions: its seat in a cohort or group is never free",
        notices=("I16", "I17"),
        wants=("cohorts", "abandoned connections"),
        edits=(
            Edit(
                "broker.sessions:Sessions.expire",
                "for subscription in list(session.subscriptions.values()):\n    self.drop(subscription)\n",
                "pass\n",
            ),
        ),
    ),
    Mutant(
        name="credit-never-returned",
        wrong="an ack does not give its credit back, so a consumer is sent its window once and then nothing",
        notices=("I16",),
        edits=(Edit("core.queue.machine:QueueMachine.settle", "consumer.credit.messages += found", "pass"),),
    ),
    Mutant(
        name="pull-keeps-unused-credit",
        wrong="what a pull asked for and did not get stays as credit: the next one gets more than it asks for",
        notices=("I10", "I9", "pull"),
        wants=("pull",),
        edits=(Edit("broker.subscription:QueueSubscription.end_fetch", "self.credit.messages -= fetch.wanted - fetch.delivered", "pass"),),
    ),
    Mutant(
        name="auto-ack-not-journalled",
        wrong="messages delivered with auto-ack are not journalled as settled: a restart delivers them again",
        notices=("I9",),
        wants=("auto-ack",),
        edits=(Edit("core.queue.granting:Round._deliver", "state.journal.settle(Action.ACK, Reason.AUTO_ACK, attempt, start, stop)", "pass"),),
        stir=DEATHS,
    ),
)

RULES: Final = (
    Mutant(
        name="key-order-not-kept",
        wrong="the next message of a key is delivered while one is leased or waits for a retry",
        notices=("I4",),
        wants=("order by key", "retry"),
        edits=(
            Edit("core.queue.lookahead:Lookahead._may_go", "return not self.keyed or key is None or self.lines[key][0] == offset", "return True"),
        ),
    ),
    Mutant(
        name="delay-taken-for-a-time",
        wrong="a delay is stored as it came, as a time long past: the message is delivered at once",
        notices=("delay",),
        edits=(Edit("broker.lane:lane_gather", "not_before = wall + run.not_before_ms", "not_before = run.not_before_ms"),),
    ),
    Mutant(
        name="retry-delay-lost-at-a-restart",
        wrong="replay makes a message that waits for its retry ready at once",
        notices=("delay", "I9"),
        stir=DEATHS,
        wants=("retry", "back-off"),
        edits=(Edit("core.queue.replaying:_settlement", "state.make_delayed(start, stop, when_ms)", "state.make_ready(start, stop)"),),
    ),
    Mutant(
        name="back-off-ignored",
        wrong="a retry with a delay is delivered again at once",
        notices=("delay", "I9"),
        wants=("retry", "back-off"),
        edits=(
            Edit(
                "core.queue.fates:give_back",
                "delay = min(backoff_ms(state, attempts) if delay_ms is None else delay_ms, DELAY_MS_MAX)",
                "delay = 0",
            ),
        ),
    ),
    Mutant(
        name="expiry-ignored",
        wrong="the expiry that a message was published with is not kept",
        notices=("expiry",),
        wants=("ttl",),
        edits=(Edit("broker.lane:lane_gather", "expires_at = wall + run.expires_at_ms", "expires_at = 0"),),
    ),
    Mutant(
        name="expired-too-early",
        wrong="expiry is compared in whole seconds, so messages expire up to a second early",
        notices=("I1",),
        wants=("ttl", "dead letters", "read dead letters"),
        edits=(Edit("core.queue.expiry:Expiry.due", "expiring[0][0] <= wall_ms", "expiring[0][0] // 1000 <= wall_ms // 1000"),),
    ),
    Mutant(
        name="ttl-by-the-second",
        wrong="append times are kept to the second only, so the queue's time to live ends early for some",
        notices=("I1",),
        wants=("ttl of the queue", "dead letters", "read dead letters"),
        edits=(Edit("core.queue.state:State.append", "grain_ms=0 if spec.ttl_ms or spec.max_age_ms else TIME_GRAIN_MS", "grain_ms=TIME_GRAIN_MS"),),
    ),
    Mutant(
        name="max-deliveries-off-by-one",
        wrong="a message is delivered once more than max_deliveries",
        notices=("max_deliveries", "I9"),
        wants=("max deliveries", "retry"),
        edits=(Edit("core.queue.fates:give_back", "attempts >= attempts_max", "attempts > attempts_max"),),
    ),
    Mutant(
        name="rejected-dropped",
        wrong="a rejected message is dropped although its queue names where dead letters go",
        notices=("I1",),
        wants=("dead letters", "reject"),
        edits=(
            Edit(
                "core.queue.fates:bury",
                "if state.spec.dead_letter and not drop:",
                "if state.spec.dead_letter and not drop and reason != Reason.REJECTED:",
            ),
        ),
    ),
    Mutant(
        name="overflow-drops-instead-of-dead-lettering",
        wrong="overflow = dead_letter_oldest drops the oldest",
        notices=("I1",),
        wants=("limits",),
        edits=(Edit("core.queue.admission:make_room", 'drop = spec.overflow == "drop_oldest"', "drop = True"),),
    ),
    Mutant(
        name="overflow-drops-the-newest",
        wrong="overflow removes the newest of the messages that were there, not the oldest",
        notices=("I1", "overflow"),
        wants=("limits", "late consumers"),
        edits=(
            Edit(
                "core.queue.admission:_bury_oldest",
                "end = min(held.pieces(first, below, 1)[0][1], first + count - gone)",
                "first, end, _ = held.pieces(first, below)[-1]\nfirst = max(first, end - (count - gone))",
            ),
        ),
    ),
    Mutant(
        name="limit-forgets-what-is-on-its-way",
        wrong="a queue's limit counts what is enqueued and not what was admitted before: bursts go beyond it",
        notices=("limit", "I17"),
        wants=("limits",),
        edits=(
            Edit(
                "core.queue.admission:Admission.admit",
                "if spec.max_messages and state.unsettled_count + self.count + count > spec.max_messages:",
                "if spec.max_messages and state.unsettled_count + count > spec.max_messages:",
            ),
        ),
    ),
    Mutant(
        name="priorities-inverted",
        wrong="the lowest priority is served first",
        notices=("priority", "I4"),
        wants=("priorities",),
        edits=(Edit("core.queue.granting:Round._hand_out", "for level in reversed(levels) if level", "for level in levels if level"),),
    ),
    Mutant(
        name="purge-forgets-the-delayed",
        wrong="a purge leaves delayed messages in the queue",
        notices=("I2", "I9", "purge"),
        wants=("administration", "verb purge", "delay"),
        edits=(
            Edit("core.queue.administration:Administration.purge", "state.cut_ready(0, ALL) + state.cut_delayed(0, ALL)", "state.cut_ready(0, ALL)"),
        ),
    ),
    Mutant(
        name="purge-not-journalled",
        wrong="a purge is not journalled: a restart brings the messages back",
        notices=("I2", "I9", "purge"),
        stir=DEATHS,
        wants=("administration", "verb purge"),
        edits=(
            Edit(
                "core.queue.administration:Administration.purge",
                "state.journal.settle(Action.PURGE, Reason.PURGED, 0, first, end, wall_ms)",
                "pass",
            ),
        ),
    ),
    Mutant(
        name="snapshot-without-the-delayed",
        wrong="a snapshot has no delayed messages",
        notices=("I1", "I18", "damage", "error"),
        wants=("delay",),
        edits=(Edit("core.queue.snapshots:snapshot", "list(state.delayed)", "[]"),),
    ),
    Mutant(
        name="snapshot-without-priorities",
        wrong="a snapshot has no priorities",
        notices=("priority", "I18", "damage", "error"),
        wants=("priorities",),
        edits=(Edit("core.queue.snapshots:snapshot", "list(state.priorities)", "[]"),),
    ),
    Mutant(
        name="snapshot-without-the-leased",
        wrong="a snapshot has no leases: what was leased is in no book any more",
        notices=("I1", "I15", "I18", "damage", "error"),
        edits=(
            Edit(
                "core.queue.snapshots:snapshot",
                "leases,\n[(first, end, *failures) for first, end, failures in state.attempts],",
                "[],\n[(first, end, *failures) for first, end, failures in state.attempts],",
            ),
        ),
    ),
    Mutant(
        name="snapshot-without-transfers",
        wrong="a snapshot has no transfers: dead letters on their way are in no book any more",
        notices=("I1", "I15", "I18"),
        edits=(Edit("core.queue.snapshots:snapshot", "[transfer for _, transfer in sorted(state.transfers.pending.items())]", "[]"),),
    ),
    Mutant(
        name="transfer-forgotten-at-a-restart",
        wrong="dead letters that were on their way when the broker died are not carried on",
        notices=("I1", "I16"),
        wants=("dead letters", "reject"),
        edits=(Edit("core.queue.administration:Administration._warm", "state.transfers.hand_out_again()", "pass"),),
    ),
    Mutant(
        name="transfer-done-before-it-arrived",
        wrong="a transfer counts as done before its target has it: killed in between, the dead letters are nowhere",
        notices=("I1",),
        wants=("dead letters", "reject"),
        edits=(
            Edit(
                "broker.outbox:Outbox._insist",
                "await self._publish(source, transfer)",
                "source.machine.transfer_done(transfer.number)\nself.broker.mark(source)\nawait self._publish(source, transfer)",
            ),
        ),
    ),
    Mutant(
        name="transferred-twice",
        wrong="a transfer that is repeated after a restart comes under another producer id and is stored again",
        notices=("I11", "I9"),
        wants=("dead letters", "reject", "retry"),
        edits=(Edit("broker.outbox:Outbox._publish", '{transfer.number}/{transfer.wall_ms}"', '{transfer.number}/{broker.incarnation}"'),),
        stir=DEATHS,
    ),
    Mutant(
        name="transfer-leaves-its-messages",
        wrong="replay of a transfer does not settle its messages: after a restart they are in both queues",
        notices=("I9", "I11", "I15"),
        wants=("dead letters", "reject"),
        edits=(Edit("core.queue.replaying:replay", "_settle(state, taken.first, min(taken.first + taken.count, state.end))", "pass"),),
        stir=DEATHS,
    ),
    Mutant(
        name="cohort-not-exclusive",
        wrong="a partition's gate is not looked at: every member of a cohort is served from every partition",
        notices=("cohort", "I10"),
        wants=("cohorts",),
        edits=(Edit("core.queue.machine:QueueMachine.grant", "if self._gate is not None:", "if self._gate is not None and self._gate[0] is None:"),),
    ),
)

QUEUES: Final = (*LEASES, *RULES)
