"""What the machine asks of its driver, and the words in which the driver tells it how things stand.

Values only. Effects are done in the order in which they were given. What has a ``number`` is answered with ``answered(number, ...)`` whatever became
of it; a ``Store`` with ``stored(record)`` once it is durable, a ``SetAside`` with ``set_aside(id)``.
"""

from enum import Enum
from typing import Literal

import msgspec

from headrace.core.formation.messages import AnyMessage
from headrace.core.formation.records import Charter, Record


class State(Enum):
    """Where a broker stands with its cluster."""

    INIT = "init"
    WAIT = "wait"
    FORMING = "forming"
    CATCHUP = "catchup"
    ACTIVE = "active"
    DRAINING = "draining"
    HALTED = "halted"
    REMOVED = "removed"


class Standing(msgspec.Struct, frozen=True):
    """A state with its reason: ``code`` for programs, ``reason`` one sentence, ``on`` whom it waits for."""

    state: State
    code: str
    reason: str
    on: tuple[str, ...] = ()


class ConsensusMember(msgspec.Struct, frozen=True):
    """A member of the consensus as its own store lists it. ``started`` False: added, and never heard of since."""

    name: str
    seat: int
    learner: bool
    started: bool


class Consensus(msgspec.Struct, frozen=True, kw_only=True):
    """How the consensus looks from here: the own member's view, an observer's by way of the voters."""

    running: bool = False
    """A member of this broker runs."""
    leader: str = ""
    """The broker whose member leads; "" = none is known, so there is no quorum."""
    caught_up: bool = False
    """The own member answers for itself and has all that is committed."""
    members: tuple[ConsensusMember, ...] = ()


NO_CONSENSUS = Consensus()


class Send(msgspec.Struct, frozen=True):
    """Send it; ``address`` "" = only on a connection that is there."""

    to: str
    address: str
    message: AnyMessage


class Store(msgspec.Struct, frozen=True):
    """Make it durable in its slot, then ``stored(record)``. One at a time."""

    record: Record


class StartConsensus(msgspec.Struct, frozen=True, kw_only=True):
    """Run this broker's consensus member. ``new``: static bootstrap with ``initial``; ``existing``: its own data; ``join``: it was added as a
    learner, ``initial`` are the members of now; ``alone``: its own data, without the other members, under the new token. ``seat`` is part of the
    member's name and of its directory's."""

    mode: Literal["new", "existing", "join", "alone"]
    token: str
    seat: int
    initial: tuple[tuple[str, int, str], ...]
    """Name, seat and peer address of each member."""


class StopConsensus(msgspec.Struct, frozen=True):
    """Stop the member; ``drop``: and set its data aside, it has no seat any more."""

    drop: bool
    reason: str


class Follow(msgspec.Struct, frozen=True):
    """Use the consensus of ``voters`` (name, address) without a member of one's own. ``guest``: read metadata, own nothing."""

    cluster_id: str
    voters: tuple[tuple[str, str], ...]
    guest: bool


class AddLearner(msgspec.Struct, frozen=True):
    """Add a member that does not vote. Refused if one of that name is there."""

    number: int
    name: str
    seat: int
    address: str


class Promote(msgspec.Struct, frozen=True):
    """Make a learner a voter."""

    number: int
    name: str
    seat: int


class Remove(msgspec.Struct, frozen=True):
    """Take a member out of the consensus."""

    number: int
    name: str
    seat: int


class Commit(msgspec.Struct, frozen=True):
    """Write the charter if the one in the coordinator has revision ``expected`` (0 = there is none)."""

    number: int
    expected: int
    charter: Charter


class Drain(msgspec.Struct, frozen=True):
    """Hand all partitions of these brokers over, and of no others any more, then ``drained(names)``; repeated names change nothing."""

    names: tuple[str, ...]


class SetAside(msgspec.Struct, frozen=True):
    """Serve nothing, stop the member, rename all data but the slots that lie outside, keep it for ``keep_ms``; then ``set_aside(id)``. Done once is
    done: without data it is a success."""

    id: str
    cluster_id: str
    keep_ms: int
    reason: str


class Changed(msgspec.Struct, frozen=True):
    """The standing changed: a line in the log. Serve while the state is ACTIVE or DRAINING, and else not."""

    before: Standing
    now: Standing


class Alarm(msgspec.Struct, frozen=True):
    """Somebody has to look at this; said once for each ``key`` until it ends. ``reason`` "" = it has ended."""

    key: str
    reason: str


class Exit(msgspec.Struct, frozen=True):
    """End the process, as the config asks for."""

    reason: str


AnyEffect = (
    Send | Store | StartConsensus | StopConsensus | Follow | AddLearner | Promote | Remove | Commit | Drain | SetAside | Changed | Alarm | Exit
)


class Verdict(Enum):
    """The answer to a config that was fed."""

    BEGUN = "begun"
    ALREADY = "already applied"
    OLDER = "older"
    CONFLICT = "conflict"
    INVALID = "invalid"
    BUSY = "busy"


class Answer(msgspec.Struct, frozen=True):
    """``version`` is the one that is current here."""

    verdict: Verdict
    version: int
    reason: str
