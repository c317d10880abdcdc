"""What an error of etcd or of the connection to it means: try elsewhere, refresh the token, refused, or nobody knows.

Owns the table from etcd's messages (api/v3rpc/rpctypes) to ours. Does not know which call failed. An error that is not in the table
counts as unknown, so that a new message of a new version can never make us believe that nothing happened.
"""

from typing import Final, Literal

from headrace.model.errors import Conflict, CoordinatorUnavailable, HeadraceError, Invalid, NotFound, RevisionGone, Unauthorized

Verdict = Literal["elsewhere", "token", "refused", "oversize", "unknown"]

_ELSEWHERE: Final = (
    "etcdserver: no leader",
    "etcdserver: rpc not supported for learner",
    "etcdserver: too many requests",
    "etcdserver: not capable",
    "failed to connect to all addresses",
    "connections to all backends failing",
)
"""Refused before it was proposed, or never sent."""
_TOKEN: Final = ("etcdserver: invalid auth token", "etcdserver: revision of auth store is old")
_REFUSED: Final[tuple[tuple[str, type[HeadraceError], str], ...]] = (
    ("mvcc: required revision has been compacted", RevisionGone, ""),
    ("mvcc: required revision is a future revision", RevisionGone, ""),
    ("requested lease not found", Conflict, "register again"),
    ("mvcc: database space exceeded", CoordinatorUnavailable, "compact and defragment etcd, then disarm its alarm"),
    ("member not found", NotFound, "list the members"),
    ("Peer URLs already exists", Conflict, "it is a member already: list the members"),
    ("member ID already exist", Conflict, "it is a member already: list the members"),
    ("too many learner members in cluster", Conflict, "promote or remove the learner that is there first"),
    ("can only promote a learner member which is in sync with leader", CoordinatorUnavailable, "it is catching up: try again in a moment"),
    ("can only promote a learner member", Conflict, "it votes already"),
    ("re-configuration failed due to not enough started members", Conflict, "start the members that are not running, or remove those first"),
    ("unhealthy cluster", CoordinatorUnavailable, "wait until all voters are connected, then try again"),
    ("authentication failed", Unauthorized, "check coordination.etcd.user and the password file"),
    ("permission denied", Unauthorized, "grant the user of coordination.etcd.user read and write on the keys of Headrace"),
    ("user name is empty", Unauthorized, "set coordination.etcd.user and a password file"),
    ("authentication is not enabled", Unauthorized, "leave coordination.etcd.user empty, or enable authentication in etcd"),
    ("request is too large", Invalid, ""),
    ("too many operations in txn request", Invalid, "raise etcd's --max-txn-ops to at least 128"),
    ("duplicate key given in txn request", Invalid, ""),
    ("key is not provided", Invalid, ""),
)


def judge(message: str) -> Verdict:
    """What to do about it."""
    if any(m in message for m in _ELSEWHERE):
        return "elsewhere"
    if any(m in message for m in _TOKEN):
        return "token"
    if any(m in message for m, _, _ in _REFUSED):
        return "refused"
    if "message larger than max" in message:
        return "oversize"
    return "unknown"


def refusal(message: str) -> HeadraceError:
    """The error of ours for one that ``judge`` calls refused."""
    for text, error, hint in _REFUSED:
        if text in message:
            return error(f"etcd: {message.removeprefix('etcdserver: ')}", hint=hint)
    return CoordinatorUnavailable(f"etcd: {message}")
