"""Whose data a gospel stands for that is no member of the cluster any more."""

import pytest

from headrace.core.formation.judging import Here, Verdict, judge
from headrace.core.formation.messages import Condition, Hello
from headrace.core.formation.records import Charter, Directory, Enrolled
from headrace.sim.formation.play import declared

ROSTER = tuple(Enrolled(name=n, incarnation=Directory(n * 32), seat=1) for n in "ab")
HERE = Here(
    name="a", cluster_id="ours", incarnation=ROSTER[0].incarnation,
    charter=Charter(cluster_id="ours", revision=7, config=declared(1, ["a", "b"]), roster=ROSTER),
)  # fmt: skip


@pytest.mark.parametrize(
    ("condition", "cluster_id", "there", "expected"),
    [
        ("removed", "ours", True, (Verdict.COMMIT, "")),
        ("removed", "theirs", True, (Verdict.REFUSE, "gospel_removed")),
        ("removed", "theirs", False, (Verdict.REFUSE, "gospel_removed")),
        ("formed", "theirs", True, (Verdict.ELSEWHERE, "gospel_elsewhere")),
        ("formed", "theirs", False, (Verdict.ELSEWHERE, "gospel_elsewhere")),
        ("fresh", "", True, (Verdict.END, "confirmed")),
    ],
)
def test_a_gospel_that_is_not_enrolled(condition: Condition, cluster_id: str, there: bool, expected: tuple[Verdict, str]) -> None:
    """Found by program 3257: the data of one that another cluster removed was taken for the data of this one."""
    config = declared(2, ["a", "b", "c"], gospel="c", confirm_discard=["ours", "theirs"])
    hello = Hello(boot="life", sequence=1, incarnation=Directory("c" * 32), condition=condition, cluster_id=cluster_id)
    known = {"c": hello}
    judgement = judge(config, HERE, known.get, known.get if there else {}.get)
    assert (judgement.verdict, judgement.code) == expected
    assert (judgement.on == ("c",)) is (expected[0] in (Verdict.REFUSE, Verdict.ELSEWHERE))
