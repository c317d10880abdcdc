"""Epoch histories against the journals themselves: a list of the epoch of each entry."""

import hypothesis.strategies as st
from hypothesis import given

from headrace.core.replica.epochs import EpochHistory, sound
from tests.property.effort import effort

STEPS = st.lists(st.tuples(st.integers(0, 3), st.integers(1, 5)), max_size=8)


def journal(steps: list[tuple[int, int]], epoch: int = 1) -> list[int]:
    """The epoch of each entry of a journal whose owners wrote so many each."""
    entries: list[int] = []
    for skip, count in steps:
        epoch += skip
        entries += [epoch] * count
    return entries


def history(entries: list[int], start: int = 1) -> EpochHistory:
    made = EpochHistory()
    for index, epoch in enumerate(entries, 1):
        made.append(epoch, index)
    made.trim(start)
    made.truncate(len(entries) + 1)
    made.check(len(entries) + 1)
    return made


@given(STEPS, st.data())
@effort(200)
def test_a_history_knows_the_epoch_of_each_entry(steps: list[tuple[int, int]], data: st.DataObject) -> None:
    entries = journal(steps)
    start = data.draw(st.integers(1, len(entries) + 1))
    made = history(entries, start)
    for index in range(start, len(entries) + 1):
        assert made.epoch_at(index) == entries[index - 1]
    assert made.epoch_at(start - 1) == (entries[start - 2] if start > 1 else 0)
    assert made.epoch_at(start - 2) == -1
    assert made.last_epoch == (entries[-1] if entries else 0)
    first = data.draw(st.integers(start, len(entries) + 1))
    end = data.draw(st.integers(first, len(entries) + 1))
    runs = made.between(first, end)
    assert sound(runs, start=first, base_epoch=made.epoch_at(first - 1), end=end)
    again = EpochHistory(first, made.epoch_at(first - 1), runs)
    assert [again.epoch_at(i) for i in range(first, end)] == entries[first - 1 : end - 1]
    made.truncate(end)
    made.check(max(end, start))


@given(STEPS, STEPS, STEPS, st.data())
@effort(300)
def test_divergence_is_the_end_of_what_two_journals_share(
    shared: list[tuple[int, int]], mine: list[tuple[int, int]], others: list[tuple[int, int]], data: st.DataObject
) -> None:
    """As machines make them: what two journals do not share was written in different epochs."""
    common = journal(shared)
    last = common[-1] if common else 0
    a = common + [2 * e for e in journal([(s + 1, c) for s, c in mine], last)]
    b = common + [2 * e + 1 for e in journal([(s + 1, c) for s, c in others], last)]
    cut = data.draw(st.integers(len(common), len(a)))
    kept = a[:cut]  # one may also simply be shorter
    end = 0
    while end < min(len(kept), len(b)) and kept[end] == b[end]:
        end += 1
    assert history(kept).divergence(len(kept) + 1, history(b), len(b) + 1) == end + 1
    assert history(a).divergence(len(a) + 1, history(kept), len(kept) + 1) == len(kept) + 1
    start_a, start_b = data.draw(st.integers(1, len(common) + 1)), data.draw(st.integers(1, len(common) + 1))
    found = history(kept, start_a).divergence(len(kept) + 1, history(b, start_b), len(b) + 1)
    assert found is None or found == end + 1
    if max(start_a, start_b) <= len(common) and (start_a == start_b or common[start_a - 1] == common[start_b - 1]):
        assert found == end + 1


@given(st.lists(st.tuples(st.integers(-2, 5), st.integers(-2, 9)), max_size=5), st.integers(-2, 9), st.integers(-2, 5), st.integers(-2, 9))
@effort(300)
def test_what_a_peer_says_is_sound_or_refused(runs: list[tuple[int, int]], start: int, base_epoch: int, end: int) -> None:
    if sound(runs, start=start, base_epoch=base_epoch, end=end):
        made = EpochHistory(start, base_epoch, runs)
        epochs = [made.epoch_at(i) for i in range(start - 1, end)]
        assert epochs == sorted(epochs)
        assert made.divergence(end, made, end) == end
