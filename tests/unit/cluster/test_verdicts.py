"""What errors of etcd mean for the outcome; above all that the unexpected counts as unknown."""

import pytest

from headrace.cluster.etcd.verdicts import judge, refusal
from headrace.errors import Conflict, CoordinatorUnavailable, HeadraceError, Invalid, NotFound, RevisionGone, Unauthorized


@pytest.mark.parametrize(
    "message",
    [
        "etcdserver: request timed out",
        "etcdserver: request timed out, possibly due to previous leader failure",
        "etcdserver: leader changed",
        "etcdserver: server stopped",
        "Socket closed",
        "Stream removed (recvmsg:Connection reset by peer (104))",
        "Deadline Exceeded",
        "something that a later version says",
        "",
    ],
)
def test_what_may_have_been_proposed_is_unknown(message: str) -> None:
    assert judge(message) == "unknown"


@pytest.mark.parametrize(
    "message", ["etcdserver: no leader", "etcdserver: too many requests", "failed to connect to all addresses; last error: UNKNOWN: refused"]
)
def test_what_was_never_proposed_is_asked_elsewhere(message: str) -> None:
    assert judge(message) == "elsewhere"


@pytest.mark.parametrize(
    ("message", "error"),
    [
        ("etcdserver: mvcc: required revision has been compacted", RevisionGone),
        ("etcdserver: requested lease not found", Conflict),
        ("etcdserver: member not found", NotFound),
        ("etcdserver: can only promote a learner member which is in sync with leader", CoordinatorUnavailable),
        ("etcdserver: can only promote a learner member", Conflict),
        ("etcdserver: mvcc: database space exceeded", CoordinatorUnavailable),
        ("etcdserver: request is too large", Invalid),
        ("etcdserver: authentication failed, invalid user ID or password", Unauthorized),
    ],
)
def test_refusals_are_errors_of_ours(message: str, error: type[HeadraceError]) -> None:
    assert judge(message) == "refused"
    assert type(refusal(message)) is error
    assert refusal(message).definite
