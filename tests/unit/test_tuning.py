"""The C library's memory: kept where it can be, and nothing fails where it cannot."""

import ctypes
import subprocess
import sys

import pytest

from headrace.broker import tuning


class Library:
    def __init__(self, answer: int) -> None:
        self.answer = answer
        self.asked: list[tuple[int, int]] = []

    def mallopt(self, what: int, value: int) -> int:
        self.asked.append((what, value))
        return self.answer


def test_both_thresholds_are_set() -> None:
    library = Library(1)
    assert tuning.keep_memory(library)
    assert library.asked == [(-1, tuning.KEPT_BYTES), (-3, tuning.MAPPED_BYTES)]


def test_a_library_that_cannot_is_left_alone() -> None:
    assert not tuning.keep_memory(object())
    assert not tuning.keep_memory(Library(0))


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="another C library")
def test_a_block_that_was_freed_is_used_again_without_new_pages() -> None:
    measure = (
        "import ctypes, resource, sys\n"
        "from headrace.broker import tuning\n"
        "if sys.argv[1] == 'kept': assert tuning.keep_memory(ctypes.CDLL(None))\n"
        "for n in range(400):\n"
        "    if n == 200: before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "    blocks = [bytes(300_000 + n) for _ in range(8)]\n"
        "    del blocks\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)\n"
    )
    faults = int(subprocess.run([sys.executable, "-c", measure, "kept"], capture_output=True, text=True, check=True, timeout=60).stdout)
    assert faults < 200 * 8, "less than one page a block, which has 74"
