"""Topic names and topic filters: which are any, and which filter matches which name.

Owns their rules (MQTT 5.0 chapter 4.7 and 4.8). ``matches`` is the rule in its plainest form; ``tree`` answers the same for many filters at once.
"""

from typing import Final

from headrace.model.topics import filter_fault as filter_fault
from headrace.model.topics import name_fault as name_fault
from headrace.model.topics import text_fault as text_fault

SHARE: Final = "$share/"


def split_shared(filter: str) -> tuple[str, str]:
    """(group, filter) of a shared subscription; the group is empty for any other. A shared one that is malformed has an empty filter."""
    if not filter.startswith(SHARE):
        return "", filter
    group, slash, rest = filter[len(SHARE) :].partition("/")
    if not group or not slash or not rest or "+" in group or "#" in group:
        return group or "?", ""  # [MQTT-4.8.2-1] [MQTT-4.8.2-2]
    return group, rest


def matches(filter: str, topic: str) -> bool:
    """Whether a filter, without a group, matches a topic name."""
    if topic[:1] == "$" and filter[:1] in ("+", "#"):
        return False  # [MQTT-4.7.2-1]
    wanted, levels = filter.split("/"), topic.split("/")
    for i, level in enumerate(wanted):
        if level == "#":
            return True
        if i >= len(levels) or level not in ("+", levels[i]):
            return False
    return len(wanted) == len(levels)
