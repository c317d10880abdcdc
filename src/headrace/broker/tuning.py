"""Knobs of the whole process that is a broker: thread switches, the garbage collector, the C library's memory.

Owns their values, and why. Knows nothing of brokers: who runs one in a process of its own calls ``begin`` before it starts and ``settled`` once it
serves.
"""

import ctypes
import gc
import sys
from typing import Any, Final

SWITCH_S: Final = 0.0001
_TRIM_THRESHOLD: Final = -1
_MMAP_THRESHOLD: Final = -3
KEPT_BYTES: Final = 64 * 1024 * 1024
"""Free memory at the end of the heap that is kept for what comes next. A flush needs a few hundred KiB and frees them a millisecond later: given back
to the system each time, every page of it is made anew and zeroed, which costs a quarter of a flood's rate."""
MAPPED_BYTES: Final = 32 * 1024 * 1024
"""Blocks from this size on are given back at once; the largest value that the C library takes."""


def begin() -> None:
    """Before a broker starts."""
    sys.setswitchinterval(SWITCH_S)
    gc.set_threshold(50_000, 50, 1_000)  # young cycles go; a full collection would stop the loop for as long as there is state
    keep_memory(ctypes.CDLL(None))


def settled() -> None:
    """What is there when a broker serves stays: the collector need not look at it again."""
    gc.collect()
    gc.freeze()


def keep_memory(library: Any) -> bool:
    """Has glibc keep what is freed; False: this is another C library, or it does not want to."""
    mallopt = getattr(library, "mallopt", None)
    return mallopt is not None and bool(mallopt(_TRIM_THRESHOLD, KEPT_BYTES)) and bool(mallopt(_MMAP_THRESHOLD, MAPPED_BYTES))
