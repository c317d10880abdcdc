"""A log that failed tells its owner, whatever failed: nobody may go on serving beside it."""

import errno

from headrace.storage.files import MemoryFiles
from tests.unit.storage.rig import Rig


def test_a_file_that_cannot_be_prepared_is_told_although_nothing_was_in_flight() -> None:
    broken = False

    def fault(operation: str, path: str, nbytes: int) -> None:
        if broken and operation == "pwritev_durable":
            raise OSError(errno.EIO, "the sync failed", path)

    rig = Rig(MemoryFiles(fault=fault), file_bytes=64 * 1024, eager=False)
    while rig.step():
        pass
    for _ in range(60):
        rig.put((1, bytes(900)))
        while not broken and rig.flusher.step():
            pass
        if len(rig.background):
            broken = True  # the next file is being prepared, and nothing is in flight
            break
    assert broken
    while rig.background.step():
        pass
    assert rig.wal.error is not None
    assert [result.error for result in rig.flushed if result.error is not None] == [rig.wal.error]
