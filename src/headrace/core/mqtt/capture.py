"""Queues and streams as MQTT sees them: the topics that name one, and what of a publish goes into which.

Owns the grammar: ``$queue/NAME``, ``$queue/NAME/KEY``, ``$queue/NAME/$ack`` (``$retry``, ``$reject``), ``$stream/NAME``, ``$stream/NAME/KEY``. The
first level after the kind is the name; in it ``%2F``, ``%2B``, ``%23`` and ``%25`` stand for ``/``, ``+``, ``#`` and ``%``.
"""

import re
from typing import Final

from headrace.core.mqtt.captured import Capture, Kind

PREFIXES: Final[dict[str, Kind]] = {"$queue/": "queue", "$stream/": "stream"}
SETTLES: Final = {"$ack": 0, "$retry": 1, "$reject": 2}
"""As the native protocol numbers them."""
_ESCAPED: Final = re.compile("%(2F|2B|23|25)", re.IGNORECASE)
_MEANT: Final = {"%2F": "/", "%2B": "+", "%23": "#", "%25": "%"}


def is_native(topic: str) -> bool:
    """Whether a topic or filter is about a queue or a stream."""
    return topic.startswith(("$queue/", "$stream/"))


def addressed(topic: str) -> Capture | None:
    """The queue or stream that a topic names; None if it names none."""
    if topic[:1] != "$":
        return None
    for prefix, kind in PREFIXES.items():
        if topic.startswith(prefix):
            segment, slash, key = topic[len(prefix) :].partition("/")
            if not segment:
                return None
            settles = SETTLES.get(key, -1) if kind == "queue" else -1
            return Capture(kind, unescaped(segment), key if slash else None, False, settles)
    return None


def unescaped(segment: str) -> str:
    """The name that a level of a topic stands for."""
    return _ESCAPED.sub(lambda found: _MEANT[found[0].upper()], segment) if "%" in segment else segment
