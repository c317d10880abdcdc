"""What a worker finds out about one record, and what the reader makes of all of it."""

from collections import Counter
from typing import Any

from records import field


def figures_of(record: bytes) -> dict[str, Any]:
    """Section, size and number of dependencies of one package."""
    depends = field(record, b"Depends")
    return {
        "section": field(record, b"Section").rpartition("/")[2] or "none",
        "installed_kib": int(field(record, b"Installed-Size") or 0),
        "depends": depends.count(",") + 1 if depends else 0,
        "bytes": len(record),
    }


class Totals:
    """Counts each id once, however often its figures come."""

    def __init__(self) -> None:
        self.counted: set[str] = set()
        self.again = 0
        self.sections: Counter[str] = Counter()
        self.installed_kib: Counter[str] = Counter()
        self.depends = 0
        self.bytes = 0

    def add(self, name: str, figures: dict[str, Any]) -> bool:
        """False: this id was counted before."""
        if name in self.counted:
            self.again += 1
            return False
        self.counted.add(name)
        self.sections[figures["section"]] += 1
        self.installed_kib[figures["section"]] += figures["installed_kib"]
        self.depends += figures["depends"]
        self.bytes += figures["bytes"]
        return True
