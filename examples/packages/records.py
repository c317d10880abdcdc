"""The work of the demo: every record of this machine's Debian package index, or made-up ones where there is no apt."""

import hashlib
import random
import shutil
import subprocess
from collections.abc import Iterable, Iterator


def records(count: int = 0) -> Iterator[tuple[str, bytes]]:
    """(id, record) of each package, at most ``count`` (0 = all). Ids are unique: the second record of one id is left out."""
    seen: set[str] = set()
    for record in index() or sample(count or 20_000):
        name = identify(record)
        if name in seen:
            continue
        seen.add(name)
        yield name, record
        if len(seen) == count:
            return


def index() -> Iterator[bytes] | None:
    """What `apt-cache dumpavail` prints, record by record; None where there is no index (`apt-get update` makes one)."""
    if not shutil.which("apt-cache"):
        return None
    process = subprocess.Popen(["apt-cache", "dumpavail"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    parts = paragraphs(process.stdout)
    first = next(parts, None)
    if first is None:
        process.wait()
        return None
    return chained(first, parts, process)


def chained(first: bytes, rest: Iterator[bytes], process: "subprocess.Popen[bytes]") -> Iterator[bytes]:
    try:
        yield first
        yield from rest
    finally:
        assert process.stdout is not None
        process.stdout.close()
        process.wait()


def paragraphs(lines: Iterable[bytes]) -> Iterator[bytes]:
    """Records that are divided by empty lines."""
    record = bytearray()
    for line in lines:
        if line != b"\n":
            record += line
        elif record:
            yield bytes(record)
            record.clear()
    if record:
        yield bytes(record)


def identify(record: bytes) -> str:
    """Name, version and architecture: what makes a package record what it is."""
    return "_".join(field(record, name) for name in (b"Package", b"Version", b"Architecture"))


def field(record: bytes, name: bytes) -> str:
    """The value of a field that fits one line, "" if there is none."""
    at = 0 if record.startswith(name + b": ") else record.find(b"\n" + name + b": ") + 1
    if at == 0 and not record.startswith(name + b": "):
        return ""
    end = record.find(b"\n", at)
    return record[at + len(name) + 2 : end if end >= 0 else len(record)].decode("utf-8", "replace")


def sample(count: int) -> Iterator[bytes]:
    """Made-up records of the same shape and about the same sizes; the same ones every time."""
    chance = random.Random(1)
    sections = ["admin", "doc", "games", "graphics", "libdevel", "libs", "net", "python", "science", "utils"]
    words = ["a", "broker", "carries", "durable", "for", "log", "messages", "of", "replays", "stream", "that", "the", "water", "wheel", "work"]
    for number in range(count):
        depends = ", ".join(f"sample-{chance.randrange(count)}" for _ in range(chance.randrange(12)))
        text = " ".join(chance.choices(words, k=chance.randrange(40, 400)))
        yield (
            f"Package: sample-{number}\nVersion: 1.{chance.randrange(100)}-1\nArchitecture: all\nInstalled-Size: {chance.randrange(10, 50_000)}\n"
            f"Section: {chance.choice(sections)}\nDepends: {depends}\nDescription: {text}\n"
        ).encode()


def fingerprint(names: Iterable[str]) -> str:
    """Equal for equal sets of ids, whatever their order."""
    return f"{sum(int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], 'big') for name in names) % 2**64:016x}"
