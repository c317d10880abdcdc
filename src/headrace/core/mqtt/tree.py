"""Many topic filters at once: which of them match a name, and which names match a filter.

``TopicTree`` keeps values under filters; a match costs what the levels of the name and the matches cost, whatever else is kept. ``NameTree`` keeps
values under names and answers for a filter, for retained messages. Neither knows what a value is. Both give values in a deterministic order.
"""

from collections.abc import Iterator
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class _Node(Generic[K, V]):
    __slots__ = ("children", "values")

    def __init__(self) -> None:
        self.children: dict[str, _Node[K, V]] = {}
        self.values: dict[K, V] = {}


class TopicTree(Generic[K, V]):
    """Filter and key to value."""

    def __init__(self) -> None:
        self._root: _Node[K, V] = _Node()
        self.count = 0
        self.version = 0
        """Grows with every change: what was matched before it may be wrong after it."""

    def put(self, filter: str, key: K, value: V) -> None:
        """Replaces what the key has under the filter."""
        node = self._root
        for level in filter.split("/"):
            child = node.children.get(level)
            if child is None:
                child = node.children[level] = _Node()
            node = child
        if key not in node.values:
            self.count += 1
        node.values[key] = value
        self.version += 1

    def remove(self, filter: str, key: K) -> bool:
        """Whether it was there. Leaves no empty node."""
        path: list[tuple[_Node[K, V], str]] = []
        node = self._root
        for level in filter.split("/"):
            child = node.children.get(level)
            if child is None:
                return False
            path.append((node, level))
            node = child
        if key not in node.values:
            return False
        del node.values[key]
        while path and not node.values and not node.children:
            node, level = path.pop()
            del node.children[level]
        self.count -= 1
        self.version += 1
        return True

    def match(self, topic: str) -> list[V]:
        """The values of all filters that match a name."""
        found: list[V] = []
        at = [self._root]
        hidden = topic[:1] == "$"  # [MQTT-4.7.2-1]
        for level in topic.split("/"):
            following: list[_Node[K, V]] = []
            for node in at:
                children = node.children
                child = children.get(level)
                if child is not None and level != "+" and level != "#":
                    following.append(child)
                if not hidden:
                    child = children.get("+")
                    if child is not None:
                        following.append(child)
                    child = children.get("#")
                    if child is not None:
                        found.extend(child.values.values())
            at = following
            hidden = False
            if not at:
                return found
        for node in at:
            found.extend(node.values.values())
            child = node.children.get("#")  # "a/#" matches "a" too
            if child is not None:
                found.extend(child.values.values())
        return found


class NameTree(Generic[V]):
    """Name to value."""

    def __init__(self) -> None:
        self._root: _Node[str, V] = _Node()
        self.count = 0

    def put(self, topic: str, value: V) -> V | None:
        """What was there before."""
        node = self._root
        for level in topic.split("/"):
            child = node.children.get(level)
            if child is None:
                child = node.children[level] = _Node()
            node = child
        before = node.values.get("")
        node.values[""] = value
        if before is None:
            self.count += 1
        return before

    def remove(self, topic: str) -> V | None:
        path: list[tuple[_Node[str, V], str]] = []
        node = self._root
        for level in topic.split("/"):
            child = node.children.get(level)
            if child is None:
                return None
            path.append((node, level))
            node = child
        before = node.values.pop("", None)
        while path and not node.values and not node.children:
            node, level = path.pop()
            del node.children[level]
        if before is not None:
            self.count -= 1
        return before

    def match(self, filter: str) -> Iterator[V]:
        """The values of all names that a filter matches, a level at a time."""
        levels = filter.split("/")
        at = [self._root]
        for i, level in enumerate(levels):
            following: list[_Node[str, V]] = []
            for node in at:
                if level == "#":
                    yield from self._below(node, hide=i == 0)
                elif level == "+":
                    following.extend(child for name, child in node.children.items() if i or name[:1] != "$")
                else:
                    child = node.children.get(level)
                    if child is not None:
                        following.append(child)
            at = following
        for node in at:
            yield from node.values.values()

    def _below(self, node: _Node[str, V], *, hide: bool) -> Iterator[V]:
        """Everything at and below a node; ``hide``: but for names that begin with $."""
        waiting = [node]
        while waiting:
            node = waiting.pop()
            yield from node.values.values()
            waiting.extend(child for name, child in reversed(node.children.items()) if not hide or name[:1] != "$")
            hide = False
