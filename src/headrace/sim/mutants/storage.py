"""Bugs of the log, of recovery, segments and small state: what was promised is not there after a crash, or damage goes unnoticed."""

from typing import Final

from headrace.sim.mutants.planting import DEATHS, FLIPS, Edit, Mutant

LOG: Final = (
    Mutant(
        name="confirm-before-sync",
        wrong="a flush counts as durable once it is written, before it is synced",
        notices=("I1", "I13"),
        edits=(
            Edit(
                "storage.logwrites:LaneWrites.write",
                "write = self._files.pwritev_durable",
                "write = lambda h, p, at: self._files.pwrite(h, b''.join(p), at)",
            ),
        ),
    ),
    Mutant(
        name="failed-sync-ignored",
        wrong="the error of a durable write is passed over and confirming goes on",
        notices=("I1", "I13", "damage"),
        edits=(Edit("storage.wal:Wal._written", "if error is not None:", "if error is not None and not isinstance(error, OSError):"),),
    ),
    Mutant(
        name="waiters-woken-before-the-flush",
        wrong="whoever waits for an index to be durable goes on as soon as it is appended",
        notices=("I1", "I13", "damage", "images"),
        net="images",
        edits=(Edit("storage.store:DiskStore.durable", "if part.durable_index >= index:", "if part.last_index >= index:"),),
    ),
    Mutant(
        name="log-file-not-named-durably",
        wrong="a new log file is used before its name in the directory is synced",
        notices=("I1", "I13", "damage", "images"),
        net="images",
        edits=(Edit("storage.walfiles:WalFiles._create", "self.files.fsync_dir(self.directory)", "pass"),),
    ),
    Mutant(
        name="recycled-name-not-synced",
        wrong="a recycled log file is written under a new name that is not synced",
        notices=("I1", "I13", "damage", "images"),
        net="images",
        edits=(Edit("storage.walfiles:WalFiles._recycle", "self.files.fsync_dir(self.directory)", "pass"),),
    ),
    Mutant(
        name="log-file-gone-too-early",
        wrong="a retired log file is recycled at once, before a durable flush says that it does not count any more",
        notices=("I1", "I13", "damage", "images"),
        net="images",
        edits=(Edit("storage.walfiles:WalFiles.retire", "return changed", "self.release(self.oldest_id)\nreturn changed"),),
    ),
    Mutant(
        name="log-file-dropped-before-the-commit",
        wrong="log files are retired before the small state names the segments to which what lives in them was moved",
        notices=("I1", "I13", "damage", "images"),
        net="images",
        edits=(Edit("storage.mover:Mover._commit", "await ground.writer.submit(puts)", "ground.submit(puts)"),),
    ),
    Mutant(
        name="log-checksum-ignored",
        wrong="entries read from the log are not compared with their checksums",
        notices=("I14", "I2", "I3"),
        stir=FLIPS,
        edits=(
            Edit("storage.reads:stored_entries", "or crc32c(data[begin + 8 : end]) != crc", ""),
            Edit("storage.reads:raw_entries", "and crc32c(raw[8:]) == crc", ""),
            Edit("storage.walreading:walk", "if crc32c(body[at + 8 : stop]) != crc:", "if crc == 0:"),
        ),
    ),
    Mutant(
        name="torn-tail-accepted",
        wrong="recovery takes a torn last flush as far as the heads of its entries are there",
        notices=("I2", "I14", "damage", "images"),
        net="images",
        edits=(
            Edit("storage.walreading:walk", "if crc32c(body[at + 8 : stop]) != crc:", "if crc32c(body[at + 8 : stop]) != crc and kind in MARKERS:"),
        ),
    ),
    Mutant(
        name="torn-tail-taken-for-damage",
        wrong="recovery isolates partitions for a torn last flush, which is what every crash may leave",
        notices=("damage", "images"),
        edits=(
            Edit(
                "storage.recovery:_Recovery._flush",
                "if successor is None and not proven:",
                "if successor is None and not proven and read is None:",
            ),
        ),
    ),
    Mutant(
        name="last-flush-dropped",
        wrong="recovery cuts the last flush though it is whole, because nothing follows it",
        notices=("I1", "I13"),
        edits=(
            Edit(
                "storage.recovery:_Recovery._flush",
                "else:\n    successor = None\nself._gap(at, source, head)\nself._last_seq = head.seq",
                "elif not proven and not head.flags & CLOSING and self._successor(at, source, head) is None:\n    return False\nelse:\n"
                "    successor = None\nself._gap(at, source, head)\nself._last_seq = head.seq",
            ),
        ),
    ),
    Mutant(
        name="hole-in-the-log-ignored",
        wrong="recovery serves a partition on whose journal has a hole, as long as something stands behind it",
        notices=("I1", "I4", "I15"),
        stir=FLIPS,
        edits=(Edit("storage.opening:_find_damage", "if lost:", "if lost and not part.rows:"),),
    ),
    Mutant(
        name="truncation-marker-not-written",
        wrong="a repair does not write to the log where it cut a partition, so that the next start finds what was cut again",
        notices=("I1", "I13", "damage", "images"),
        net="images",
        edits=(Edit("storage.quarantine:Repairs.repair", "await self._truncate(part, last_valid + 1)", "part.discard(last_valid + 1)"),),
    ),
)

SEGMENTS: Final = (
    Mutant(
        name="segment-not-synced",
        wrong="the small state names a segment whose bytes are not synced",
        notices=("I1", "I13", "I14", "damage", "images"),
        net="images",
        edits=(Edit("storage.segments:SegmentWriter.finish", "self._files.fsync(self._handle)", "pass"),),
    ),
    Mutant(
        name="segment-not-named-durably",
        wrong="the small state names a segment whose name in the directory is not synced",
        notices=("I1", "I13", "damage", "images"),
        net="images",
        edits=(Edit("storage.moving:Writing.finish", "self._files.fsync_dir(self._directory)", "pass"),),
    ),
    Mutant(
        name="segment-checksum-ignored",
        wrong="entries read from segments are not compared with their checksums",
        notices=("I14", "I2", "I3"),
        stir=FLIPS,
        wants=("much data",),
        edits=(Edit("storage.segments:_entries", "if len(view) != stop - at - 8 or crc32c(view) != crc:", "if len(view) != stop - at - 8:"),),
    ),
    Mutant(
        name="checkpoint-ahead-of-the-log",
        wrong="a checkpoint reaches the small state before the entries that it stands for are durable",
        notices=("I1", "I13", "damage", "images"),
        net="images",
        edits=(
            Edit("storage.store:DiskStore.save_checkpoint", "await self.durable(part, checkpoint.index)", "pass"),
            Edit("storage.mover:Mover._checkpoints", "await self._durable(part, checkpoint.index)", "pass"),
        ),
    ),
    Mutant(
        name="floor-ahead-of-the-log",
        wrong="segments are erased below a floor before the settlements that moved it are durable",
        notices=("I1", "images"),
        net="images",
        edits=(Edit("storage.sweeping:Sweeper.sweep", "await self._durable(part, index)", "pass"),),
    ),
    Mutant(
        name="promise-not-journalled",
        wrong="a promised epoch is kept in memory only",
        notices=("I7", "images"),
        net="images",
        edits=(
            Edit(
                "storage.intake:Intake.append",
                "part.slot = self._gathering.add(entry, part.slot)",
                "if kind != _PROMISE:\n    part.slot = self._gathering.add(entry, part.slot)",
            ),
        ),
    ),
    Mutant(
        name="promise-lost-with-its-log-file",
        wrong="a promised epoch does not outlive the log file that it stands in",
        notices=("I7", "images"),
        net="images",
        edits=(
            Edit(
                "storage.mover:Mover._plan",
                "now = Moved(job.last_index, part.last_epoch, part.promised, refs,",
                "now = Moved(job.last_index, part.last_epoch, old.promised, refs,",
            ),
        ),
    ),
    Mutant(
        name="mover-skips-straddling-entries",
        wrong="the mover leaves out an entry of which only the first records are settled",
        notices=("I1", "images"),
        stir=DEATHS,
        wants=("much data", "slow consumers"),
        edits=(Edit("storage.reads:rows_of", "index > after or base + count > floor", "index > after or base >= floor"),),
    ),
    Mutant(
        name="moved-tail-not-replayed",
        wrong="entries that were moved out of the log above the last checkpoint are not replayed",
        notices=("I1", "I9", "images"),
        net="images",
        edits=(Edit("storage.reads:Reader.entries_after", "if ref.tail_index > index:", "if False:"),),
    ),
    Mutant(
        name="deleted-partition-comes-back",
        wrong="a deletion is not remembered until the log has forgotten the partition",
        notices=("I2", "images"),
        net="images",
        edits=(Edit("storage.sweeping:Sweeper.delete", 'puts[number_key(keys.DELETED, pid)] = newest.to_bytes(8, "big")', "pass"),),
    ),
    Mutant(
        name="rewrite-forgets-the-newest-part",
        wrong="a rewrite of mostly dead segments, or a compaction, keeps the old references' order and loses the part made last",
        notices=("I1", "images"),
        net="images",
        edits=(Edit("storage.sweeping:Sweeper.replace", "done.made.get(part.pid, [])", "done.made.get(part.pid, [])[:1]"),),
    ),
    Mutant(
        name="rebuild-takes-one-segment",
        wrong="after the small state was lost only a partition's newest segment is found",
        notices=("I1", "damage"),
        stir=("state_lost",),
        edits=(Edit("storage.rebuild:_chosen", "if ref.entries and not any(", "if ref.entries and not taken and not any("),),
    ),
    Mutant(
        name="retention-removes-the-newest",
        wrong="retention by records counts from the wrong end and removes what should stay",
        notices=("I1",),
        wants=("retention",),
        edits=(Edit("storage.retention:retained_from", "below = end - records_max if records_max else -1", "below = end if records_max else -1"),),
    ),
)

STORAGE: Final = (*LOG, *SEGMENTS)
