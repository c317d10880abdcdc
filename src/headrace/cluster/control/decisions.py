"""What the controller has decided of late, and what it could not do: for the log, for alarms, for displays.

Owns the history, its bound, and that a finding is logged when it appears and when it is over, not at every plan in between. Knows no coordinator.
"""

from collections import deque
from collections.abc import Iterable
from typing import Final, Literal

import msgspec

from headrace.ambient import ambient
from headrace.core.control.changes import Act, Change, Finding
from headrace.log import get_logger
from headrace.model.cluster import NOBODY, BrokerId
from headrace.model.ids import Epoch, PartitionId

_log = get_logger("controller")

HISTORY_MAX: Final = 1000
LOGGED_MAX: Final = 50
"""Findings that appear with one plan and are logged one by one."""

Outcome = Literal["applied", "overtaken", "unknown", "refused", "dry_run"]
"""done; the partition or the controller had changed meanwhile; the answer was lost; the coordinator does not take it; only told."""

_GRAVE: Final = ("unavailable", "frozen")


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """One change with what became of it. ``term``: version of the controller's key under which it was tried."""

    wall_ms: int
    term: int
    act: Act
    partition: PartitionId
    item: str
    owner: BrokerId
    epoch: Epoch
    outcome: Outcome
    reason: str


class Decisions:
    """See the module's head."""

    def __init__(self) -> None:
        self._ambient = ambient()
        self._history: deque[Decision] = deque(maxlen=HISTORY_MAX)
        self._findings: dict[tuple[str, PartitionId | None], Finding] = {}
        self.counts: dict[str, int] = {}
        """Decisions by act and outcome (``takeover/applied``), since the start."""

    def history(self) -> tuple[Decision, ...]:
        """The newest last."""
        return tuple(self._history)

    @property
    def findings(self) -> tuple[Finding, ...]:
        return tuple(self._findings.values())

    def record(self, change: Change, outcome: Outcome, term: int) -> None:
        """Logs it in one sentence."""
        a = change.assignment
        self._history.append(
            Decision(
                wall_ms=self._ambient.wall_ns() // 1_000_000, term=term, act=change.act, partition=change.partition, item="" if a is None else a.item,
                owner=NOBODY if a is None else a.owner, epoch=Epoch(0) if a is None else a.epoch, outcome=outcome, reason=change.reason,
            )
        )  # fmt: skip
        name = f"{change.act}/{outcome}"
        self.counts[name] = self.counts.get(name, 0) + 1
        if outcome == "applied":
            _log.info("%s", change.reason)
        elif outcome == "dry_run":
            _log.info("not done, as planning is a dry run: %s", change.reason)
        elif outcome == "unknown":
            _log.warning("it is not known yet whether this was recorded: %s", change.reason)
        elif outcome == "refused":
            _log.error("the coordinator does not take this: %s", change.reason)
        else:
            _log.info("overtaken by another change: %s", change.reason)

    def found(self, findings: Iterable[Finding]) -> None:
        """These stand now, all of them."""
        before, self._findings = self._findings, {(f.kind, f.partition): f for f in findings}
        logged = 0
        for key, finding in self._findings.items():
            if key not in before and logged < LOGGED_MAX:
                logged += 1
                (_log.warning if finding.kind in _GRAVE else _log.info)("%s", finding.reason)
        for key, finding in before.items():
            if key not in self._findings and finding.kind in _GRAVE and logged < LOGGED_MAX:
                logged += 1
                _log.info("it is over that %s", finding.reason)
