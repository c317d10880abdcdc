"""What is asked of a broker about its cluster's formation and what it answers: the JSON bodies of ``/admin/api/cluster``.

Owns the shapes; the admin interface, the command line and ``ClusterAdmin`` share them. Times are milliseconds of the wall clock.
"""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

Verdict = Literal["begun", "already applied", "older", "conflict", "invalid", "busy"]
_Text = Annotated[str, Meta(max_length=512 * 1024)]


class Feed(msgspec.Struct, frozen=True, kw_only=True):
    """A declared config: as TOML (``text``) or as a table (``config``); neither: the file or table of the broker's own configuration, read again."""

    text: _Text = ""
    config: dict[str, Any] | None = None
    auto_version: bool = False
    """Its version is the time in seconds, whatever it says."""


class Fed(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to a config. ``begun``: it is taken on, and durable on the broker that was asked; ``older`` and ``conflict``: than ``version``,
    which is current; ``invalid``: every mistake is in ``mistakes``; ``busy``: ask again in a moment."""

    verdict: Verdict
    version: int
    """The one that is current now."""
    reason: str
    mistakes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    source: str = ""
    """Where the config was read."""


class PlannedStep(msgspec.Struct, frozen=True, kw_only=True):
    """``blocked``: what it waits for now, ``on`` on whom; "" = it can be done at once."""

    kind: str
    name: str
    text: str
    blocked: str = ""
    on: tuple[str, ...] = ()


class Lost(msgspec.Struct, frozen=True, kw_only=True):
    """The data of one cluster, which would be set aside on these brokers; refused unless it is confirmed."""

    cluster_id: str
    brokers: tuple[str, ...]
    data_bytes: int
    confirmed: bool


class Planned(msgspec.Struct, frozen=True, kw_only=True):
    """What a config would bring. ``answer``: what applying it would be answered now."""

    answer: Fed
    steps: tuple[PlannedStep, ...] = ()
    lost: tuple[Lost, ...] = ()
    emptied: tuple[str, ...] = ()
    """Brokers that would hand over all they own and copy, and then be removed."""


class MemberInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One broker as the one that was asked knows it."""

    name: str
    role: str
    """As declared: voter or observer; "" = it is not listed."""
    vote: str
    """What it is in the consensus now: voter, learner or none; "" = not known here."""
    leader: bool
    address: str
    reachable: bool
    since_wall_ms: int
    """Since when it is reachable, or not; of the broker that was asked: since when it is in its state."""
    state: str = ""
    reason: str = ""
    directory: str = ""
    cluster_id: str = ""
    incarnation: str = ""
    version: int = 0
    """Of the config that it has noted as committed."""
    data_bytes: int = 0
    trouble: str = ""
    admin: str = ""
    """URL of its admin HTTP, as far as it is registered."""


class Members(msgspec.Struct, frozen=True, kw_only=True):
    asked: str
    """Name of the broker that answers."""
    cluster_id: str
    version: int
    committed: bool
    """That version is committed, not only proposed."""
    members: tuple[MemberInfo, ...]
    toml: str = ""
    """The config as a file, to be edited and applied as the next version; while none is known: a first one of the brokers that were found."""


class AddVoter(msgspec.Struct, frozen=True, kw_only=True):
    address: Annotated[str, Meta(max_length=255)] = ""
    """``HOST:PORT`` of its peer listener; "" = as declared, else its name at the default port."""


class Secrets(msgspec.Struct, frozen=True, kw_only=True):
    """Ids of the secrets that a broker accepts and of those in its file, the used one first. Secrets themselves are never told."""

    broker: str
    accepted: tuple[str, ...]
    file: tuple[str, ...]


class SecretStage(msgspec.Struct, frozen=True, kw_only=True):
    """Takes the broker's secret file as it now is, one stage at a time, each on every broker before the next: ``add`` accepts what is new in it,
    ``use`` proves with its first, ``remove`` accepts no more what is not in it."""

    stage: Literal["add", "use", "remove"]
    force: bool = False
    """Remove although a broker that does not answer may still use it."""
