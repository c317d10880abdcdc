"""Which texts are MQTT topic names and topic filters (MQTT 5.0 chapters 1.5.4 and 4.7): also what a queue's or stream's bindings are."""

from typing import Final

STRING_BYTES_MAX: Final = 65_535
LEVELS_MAX: Final = 128
"""Levels of a topic filter; a name may have more, its match costs no more than the filters do."""


def filter_fault(filter: str) -> str:
    """Why ``filter`` is no topic filter; empty if it is one. A shared one is looked at without its group."""
    if not filter:
        return "a topic filter is empty"  # [MQTT-4.7.3-1]
    if "\0" in filter:
        return "a topic filter contains U+0000"  # [MQTT-4.7.3-2]
    levels = filter.split("/")
    if len(levels) > LEVELS_MAX:
        return f"a topic filter has more than {LEVELS_MAX} levels"
    for i, level in enumerate(levels):
        if "#" in level and (level != "#" or i != len(levels) - 1):
            return "# is the last level of a topic filter, alone in it"  # [MQTT-4.7.1-1]
        if "+" in level and level != "+":
            return "+ is alone in its level of a topic filter"  # [MQTT-4.7.1-2]
    return ""


def name_fault(topic: str) -> str:
    """Why ``topic`` is no topic name; empty if it is one."""
    if not topic:
        return "a topic name is empty"  # [MQTT-4.7.3-1]
    if "+" in topic or "#" in topic:
        return "a topic name has no wildcards"  # [MQTT-3.3.2-2]
    return text_fault(topic)


def text_fault(text: str) -> str:
    """Why ``text`` is no MQTT string; empty if it is one."""
    if "\0" in text:
        return "a string contains U+0000"  # [MQTT-1.5.4-2]
    if len(text.encode()) > STRING_BYTES_MAX:
        return f"a string has more than {STRING_BYTES_MAX} bytes"
    return ""
