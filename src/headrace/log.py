"""The broker's log: one place that configures it, INFO for changes of role and state with their reason, ERROR only where an operator must act.
Never payloads or secrets, nothing per message."""

import json
import logging
import sys
from typing import TextIO


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        entry = {"at_ms": int(record.created * 1000), "level": record.levelname.lower(), "logger": record.name, "message": record.getMessage()}
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False)


def get_logger(name: str) -> logging.Logger:
    """The logger of one part of the broker."""
    return logging.getLogger(f"headrace.{name}")


def configure(level: str, format: str, stream: TextIO | None = None) -> None:
    """Sends the broker's log to ``stream`` (standard error) at ``level`` as "text" or "json"."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(_Json() if format == "json" else logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s"))
    root = logging.getLogger("headrace")
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    root.propagate = False
