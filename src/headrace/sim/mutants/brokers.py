"""Bugs of publishing and of a broker's life: confirms, duplicates, checkpoints, epochs, sessions."""

from typing import Final

from headrace.sim.mutants.planting import DEATHS, FLIPS, Edit, Mutant

BROKERS: Final = (
    Mutant(
        name="confirm-at-append",
        wrong="publishes are confirmed when they are appended, before any byte is written",
        notices=("I1", "I3", "I4", "I13"),
        edits=(
            Edit(
                "broker.lane:lane_append",
                "if lane.accepted:",
                "if not lane.early:\n    told = Confirms(lane.broker.counters, turn, lane.broker.precise_ms)\n    for one in gathered:\n"
                "        told.take(one, one.level >= 2, False)\n    told.send()\nif lane.accepted:",
            ),
            Edit("broker.lane:lane_flushed", "confirms.take(publish, not early and publish.level >= 2, True)", "confirms.take(publish, False, True)"),
        ),
    ),
    Mutant(
        name="unloaded-while-it-gives",
        wrong="a partition whose transfers wait for their target leaves memory as idle, and is loaded a second time beside the first",
        notices=("I15", "I17"),
        edits=(Edit("broker.partition:Partition.idle", "return not busy and self.wake_at_ms() == 0", "return not busy"),),
        wants=("rest", "dead letters", "little room for the dead", "ttl of the queue"),
    ),
    Mutant(
        name="confirm-names-the-wrong-offset",
        wrong="all publishes of one entry are confirmed with the offset of its first",
        notices=("I3",),
        edits=(
            Edit(
                "broker.lane:lane_flushed",
                "for publish in entry.publishes:",
                "for publish in entry.publishes:\n    publish.base_offset = entry.base_offset",
            ),
        ),
    ),
    Mutant(
        name="committed-one-entry-early",
        wrong="a flush commits one entry more than it made durable",
        notices=("I13", "I1", "I5"),
        edits=(Edit("broker.lane:lane_flushed", "if entry.index > index:", "if entry.index > index + 1:"),),
    ),
    Mutant(
        name="watermark-off-by-one",
        wrong="the high watermark stands one record too high",
        notices=("I15", "I5", "I1"),
        edits=(
            Edit(
                "broker.lane:lane_flushed",
                "lane.high_watermark = entry.base_offset + entry.record_count",
                "lane.high_watermark = entry.base_offset + entry.record_count + 1",
            ),
        ),
    ),
    Mutant(
        name="duplicates-not-looked-for",
        wrong="the table of producers is not asked, so a publish that is sent again is stored again",
        notices=("I11", "I4"),
        edits=(
            Edit(
                "broker.lane:lane_publish",
                "if run.producer_id >= 0 and lane.producers.check(",
                "if run.producer_id == 0 and lane.producers.check(",
            ),
        ),
    ),
    Mutant(
        name="unloaded-while-in-use",
        wrong="a partition counts as idle while publishers and consumers are attached, and is unloaded under them",
        notices=("I1", "I3", "I9", "I10", "I15", "I16", "error", "damage"),
        edits=(Edit("broker.partition:Partition.idle", "or self.publishers or self.attached()", ""),),
    ),
    Mutant(
        name="deletion-keeps-the-data",
        wrong="a deleted queue's data stays in the store, under numbers that nothing names any more",
        notices=("I17",),
        edits=(Edit("broker.deletions:Deletions.erase", "await self._broker.store.delete(item.partitions)", "pass"),),
    ),
    Mutant(
        name="deletion-on-absence",
        wrong="a broker that starts erases what is stored under numbers of which it has not read the names yet",
        notices=("I1",),
        edits=(
            Edit(
                "broker.deletions:Deletions.finish",
                "for item in await self._broker.catalogue.deletions():",
                "known = {pid for item in self._broker.catalogue._cache.values() for pid in item.partitions}\n"
                "await self._broker.store.delete([pid for pid in self._broker.store.partitions() if pid not in known])\n"
                "for item in await self._broker.catalogue.deletions():",
            ),
        ),
    ),
    Mutant(
        name="refused-and-stored",
        wrong="a publish beyond the queue's limit is refused, and stored all the same",
        notices=("I2",),
        wants=("limits",),
        edits=(
            Edit(
                "broker.partition:Partition.publish",
                "    self.refuse(sink, channel, run, asked_level, error)\n    return None\nsink.in_flight_bytes",
                "    self.refuse(sink, channel, run, asked_level, error)\nsink.in_flight_bytes",
            ),
        ),
    ),
    Mutant(
        name="producers-not-replayed",
        wrong="replay does not fill the table of producers: what is sent again after a crash is stored again",
        notices=("I11", "I4"),
        edits=(
            Edit(
                "broker.partition:Partition.apply",
                "self.producers.stored(run.producer_id, run.producer_epoch, run.first_sequence, run.record_count, offset)",
                "pass",
            ),
        ),
    ),
    Mutant(
        name="producers-not-in-the-checkpoint",
        wrong="a checkpoint has an empty table of producers",
        notices=("I11", "I4", "I18"),
        edits=(Edit("broker.partition:Partition.state", "self.producers.snapshot()", "ProducerTable().snapshot()"),),
    ),
    Mutant(
        name="duplicate-confirmed-early",
        wrong="a publish that was sent again is confirmed while the first one is not durable yet",
        notices=("I1", "I13"),
        stir=("slow", "reset", "reset", "power"),
        edits=(Edit("broker.partition:Partition._not_new", "self.when_committed(confirm, unknown)", "confirm()"),),
    ),
    Mutant(
        name="sent-again-in-the-wrong-order",
        wrong="after a broken connection the client sends its window again newest first",
        notices=("I4",),
        edits=(Edit("client.lane:Lane.again", "for frame in self.sent.values():", "for frame in reversed(list(self.sent.values())):"),),
    ),
    Mutant(
        name="key-let-go-too-early",
        wrong="an old partition says that it has nothing of a key slot in hand while it has",
        notices=("key order",),
        wants=("repartitions", "keys", "slow consumers"),
        edits=(Edit("broker.queue_partition:QueuePartition.slots_behind", "return self.behind.slots(self.machine.stand)", "return 0"),),
    ),
    Mutant(
        name="old-routing-accepted",
        wrong="publishes that were routed before a repartition are appended after it",
        notices=("key order", "I4"),
        wants=("repartitions", "keys", "slow consumers"),
        stir=("reset", "reset", "reset"),
        edits=(Edit("broker.publisher:Publisher.publish", "if self.routing != self.lane.routing:", "if False:"),),
    ),
    Mutant(
        name="stored-again-after-a-repartition",
        wrong="what is sent again where it is stored, under the old routing, is refused as if it were not",
        notices=("I11", "I2"),
        wants=("repartitions", "keys"),
        stir=("reset", "reset", "reset"),
        edits=(Edit("broker.partition:Partition.answer_late", "if isinstance(verdict, Duplicate):", "if False:"),),
    ),
    Mutant(
        name="checkpoint-forgets-what-is-in-flight",
        wrong="a checkpoint leaves out publishes that are appended and not committed yet, though its index covers them",
        notices=("I1", "I18"),
        stir=("power", "kill"),
        wants=("slow flushes",),
        edits=(
            Edit(
                "broker.partition:Partition.state",
                "pending = [(e.base_offset, e.record_count, e.nbytes, e.wall_ms, e.metas) for e in self.in_flight if e.record_count]",
                "pending: list[object] = []",
            ),
        ),
    ),
    Mutant(
        name="offsets-given-out-again",
        wrong="after a restart from a checkpoint offsets start below what was given out",
        notices=("I3", "I1", "I5", "error"),
        edits=(
            Edit("broker.partition:Partition.recover", "self.next_offset = log.checkpoint.next_offset", "pass"),
            Edit("broker.partition:Partition.recover", "self.next_offset = max(self.next_offset, log.next_offset)", "pass"),
        ),
    ),
    Mutant(
        name="epoch-kept-over-a-restart",
        wrong="a partition is taken up again under the epoch that it had",
        notices=("I7",),
        edits=(Edit("broker.partition:Partition.activate", "self.epoch += 1", "self.epoch = max(self.epoch, 1)"),),
    ),
    Mutant(
        name="epoch-shown-before-it-is-durable",
        wrong="consumers are given messages under an epoch that a crash would give out again",
        notices=("I7", "I10"),
        edits=(
            Edit(
                "broker.queue_partition:QueuePartition.serve",
                "if self.subscriptions and self.epoch_kept and not self.quarantined:",
                "if self.subscriptions and not self.quarantined:",
            ),
        ),
    ),
    Mutant(
        name="alteration-answered-before-it-holds",
        wrong="a request that repeats an alteration under way is answered while the first one is not in force yet",
        notices=("pause", "error"),
        wants=("administration", "pausing operators", "impatient operators", "late consumers", "slow flushes"),
        stir=("slow", "slow", "reset"),
        edits=(Edit("broker.catalogue:Catalogue._update", 'self._changed(old, "altered")', "pass"),),
    ),
    Mutant(
        name="damaged-partition-served",
        wrong="a partition that recovery has isolated is served with what is left of it",
        notices=("I1", "I14", "damage", "error"),
        stir=FLIPS,
        edits=(
            Edit("broker.loading:Loading.partition", "if damage is not None:", "if damage is not None and not damage.why:"),
            Edit("storage.store:DiskStore.replay", "if pid in ground.damaged:", "if False:"),
        ),
    ),
    Mutant(
        name="pause-forgotten-at-a-restart",
        wrong="a paused queue delivers again after a restart",
        notices=("pause",),
        stir=DEATHS,
        wants=("administration", "verb pause"),
        edits=(Edit("broker.queue_partition:QueuePartition.__init__", "self._machine.pause(item.paused)", "pass"),),
    ),
)
