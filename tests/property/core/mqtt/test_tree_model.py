"""The trees answer what the plain rule answers, whatever was put and removed."""

from hypothesis import given
from hypothesis import strategies as st

from headrace.core.mqtt.topics import filter_fault, matches
from headrace.core.mqtt.tree import NameTree, TopicTree
from tests.property.effort import effort

levels = st.sampled_from(["a", "b", "", "$s", "+", "#"])
filters = st.lists(levels, min_size=1, max_size=4).map("/".join).filter(lambda f: not filter_fault(f))
names = st.lists(st.sampled_from(["a", "b", "", "$s"]), min_size=1, max_size=4).map("/".join).filter(bool)


@given(st.lists(st.tuples(st.booleans(), filters, st.integers(0, 2)), max_size=30), st.lists(names, max_size=5))
@effort(300)
def test_filters(steps: list[tuple[bool, str, int]], topics: list[str]) -> None:
    tree: TopicTree[int, tuple[str, int]] = TopicTree()
    model: dict[tuple[str, int], None] = {}
    for put, filter, key in steps:
        if put:
            tree.put(filter, key, (filter, key))
            model[filter, key] = None
        else:
            assert tree.remove(filter, key) is ((filter, key) in model)
            model.pop((filter, key), None)
    assert tree.count == len(model)
    for topic in topics:
        assert sorted(tree.match(topic)) == sorted(entry for entry in model if matches(entry[0], topic))
    for filter, key in model:
        tree.remove(filter, key)
    assert not tree._root.children


@given(st.lists(st.tuples(st.booleans(), names), max_size=30), st.lists(filters, max_size=5))
@effort(300)
def test_names(steps: list[tuple[bool, str]], asked: list[str]) -> None:
    tree: NameTree[str] = NameTree()
    model: dict[str, None] = {}
    for put, name in steps:
        if put:
            assert tree.put(name, name) == (name if name in model else None)
            model[name] = None
        else:
            assert tree.remove(name) == (name if name in model else None)
            model.pop(name, None)
    assert tree.count == len(model)
    for filter in asked:
        assert sorted(tree.match(filter)) == sorted(n for n in model if matches(filter, n))
    for name in model:
        tree.remove(name)
    assert not tree._root.children
