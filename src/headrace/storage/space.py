"""Room on the disk: tells the owner when it runs out and when it is back, with a gap between the two so that it does not flap.

Owns the ballast, a file kept only to be given up when the disk is full. Looks once a second and after a write found no room.

I1 Nearly full is told once, from ``disk_free_bytes_min`` down or when a write found no room; room is told once, from a quarter above it on and only
when no write waits for room. I2 The ballast is made only when there is room for it three times over."""

import contextlib

from headrace.storage.api import Owner
from headrace.storage.files import DISK_FULL, zero_fill
from headrace.storage.ground import Ground, log


class Space:
    """See the module's head."""

    def __init__(self, ground: Ground, owner: Owner) -> None:
        self.free_bytes = 0
        self._ground = ground
        self._owner = owner
        self._path = f"{ground.root}/ballast"
        self._ballast_bytes = ground.config.storage.ballast_bytes
        self._low = ground.config.storage.disk_free_bytes_min
        self._nearly_full = False
        self._waits = False
        self._held = False
        self._found_full = False

    async def begin(self) -> None:
        """First look; the ballast is made or found."""
        self._held = await self._ground.on(self._ground.io, lambda: self._ground.files.exists(self._path))
        await self.look()

    def ran_full(self, full: bool) -> None:
        """The log waits for room (or goes on)."""
        self._waits = full
        if full:
            self._ran_out()

    def note_error(self, error: OSError) -> None:
        """A write failed."""
        if error.errno in DISK_FULL:
            self.note_full()

    def note_full(self) -> None:
        """A write found no room."""
        self._found_full = True
        self._ran_out()

    def _ran_out(self) -> None:
        if self._held:
            self._held = False
            log.warning("the disk is full: the ballast of %d bytes is given up, for settling and deleting", self._ballast_bytes)
            self._ground.io.submit(self._drop, lambda _result, _error: None)
        self._tell(True)

    async def look(self) -> None:
        """Measures, tells a change, takes the ballast back when there is room."""
        ground = self._ground
        self.free_bytes = await ground.on(ground.io, lambda: ground.files.free_bytes(ground.root))
        low = self._low
        if self._nearly_full:
            if self.free_bytes >= max(low + low // 4, 2 * self._ballast_bytes if self._found_full else 0) and not self._waits:
                self._found_full = False
                self._tell(False)
        elif self.free_bytes < low:
            self._tell(True)
        if self._ballast_bytes and not self._held and not self._nearly_full and self.free_bytes >= low + 3 * self._ballast_bytes:
            self._held = await ground.on(ground.io, self._make)

    def _tell(self, nearly_full: bool) -> None:
        if nearly_full != self._nearly_full:
            self._nearly_full = nearly_full
            self._owner.disk(nearly_full)

    def _make(self) -> bool:
        files = self._ground.files
        try:
            handle = files.create(self._path)
        except FileExistsError:
            return True
        try:
            zero_fill(files, handle, self._ballast_bytes)
        except OSError:
            with contextlib.suppress(OSError):
                files.unlink(self._path)
            return False
        finally:
            files.close(handle)
        return True

    def _drop(self) -> None:
        with contextlib.suppress(OSError):
            self._ground.files.unlink(self._path)
            self._ground.files.fsync_dir(self._ground.root)
