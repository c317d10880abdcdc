"""What the admin interface asks of a broker, and nothing more."""

from collections.abc import Callable
from typing import Any, Protocol

from headrace.broker.metrics import Snapshot
from headrace.wire import control


class Verbs(Protocol):
    """Carries out control requests."""

    async def call(self, request: control.Request) -> control.Reply:
        """The answer, or a ``HeadraceError``."""


class Service(Protocol):
    """A broker as the admin interface sees it."""

    @property
    def verbs(self) -> Verbs: ...

    @property
    def formation(self) -> Callable[[], dict[str, Any]] | None:
        """How the formation of the cluster stands, as JSON; None: this broker is alone."""

    def metrics(self) -> Snapshot:
        """The figures now; cheap enough to be asked every second."""
