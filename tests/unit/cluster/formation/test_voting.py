"""Who votes is taken out only if a majority of the other voters answers, each for itself."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from headrace.cluster.etcd.client import EtcdCoordinator
from headrace.cluster.formation.voting import Listed, Voting
from headrace.core.formation.effects import ConsensusMember
from headrace.model.config import Coordination
from headrace.model.errors import CoordinatorUnavailable


def listed(name: str, *, learner: bool = False) -> Listed:
    return Listed(ord(name), ConsensusMember(name=name, seat=1, learner=learner, started=True), f"{name}-1", f"{name}:1", f"{name}:2")


@pytest.mark.parametrize(
    ("voters", "leaving", "answer", "without_leader", "refused"),
    [
        ("abc", "c", "ab", "", ""),
        ("abc", "c", "a", "", "b"),
        ("abc", "c", "ab", "b", "b"),
        ("abcd", "d", "ab", "", ""),
        ("abcde", "e", "ab", "", "c, d"),
        ("a", "a", "a", "", "nobody else"),
    ],
)
async def test_a_majority_of_the_others_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, voters: str, leaving: str, answer: str, without_leader: str, refused: str
) -> None:
    voting = Voting("z", tmp_path, Coordination(), lambda: "127.0.0.1:7582")

    async def status(client: EtcdCoordinator, address: str) -> Any:
        name = address[0]
        return SimpleNamespace(leader=0 if name in without_leader else 7) if name in answer else None

    monkeypatch.setattr(voting, "_status", status)
    client = cast("EtcdCoordinator", None)
    members = [*(listed(name) for name in voters), listed("l", learner=True)]
    await voting._leaves_quorum(client, listed("l", learner=True), members)
    if not refused:
        await voting._leaves_quorum(client, listed(leaving), members)
        return
    with pytest.raises(CoordinatorUnavailable, match=f"without {leaving} there would be no quorum: {refused} of"):
        await voting._leaves_quorum(client, listed(leaving), members)
