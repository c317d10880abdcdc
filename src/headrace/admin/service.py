"""What the admin interface asks of a broker, and nothing more."""

from typing import Any, Protocol

from headrace.broker.metrics import Snapshot
from headrace.wire import control, formation


class Verbs(Protocol):
    """Carries out control requests."""

    async def call(self, request: control.Request) -> control.Reply:
        """The answer, or a ``HeadraceError``."""


class Formation(Protocol):
    """The formation of the cluster that a broker belongs to, or shall belong to, and what operators may want of it."""

    def status(self) -> dict[str, Any]:
        """How it stands, as JSON."""

    def members(self) -> formation.Members: ...

    async def apply(self, feed: formation.Feed) -> formation.Fed: ...

    async def plan(self, feed: formation.Feed) -> formation.Planned: ...

    async def add_voter(self, name: str, address: str = "") -> formation.Fed: ...

    async def remove_voter(self, name: str, *, leave: bool = False) -> formation.Fed: ...

    async def secrets(self) -> formation.Secrets: ...

    async def rotate(self, stage: formation.SecretStage) -> formation.Secrets: ...


class Service(Protocol):
    """A broker as the admin interface sees it."""

    @property
    def verbs(self) -> Verbs: ...

    @property
    def formation(self) -> Formation | None:
        """None: this broker is alone."""

    def metrics(self) -> Snapshot:
        """The figures now; cheap enough to be asked every second."""
