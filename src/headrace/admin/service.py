"""What the admin interface asks of a broker, and nothing more."""

from typing import Protocol

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

    def metrics(self) -> Snapshot:
        """The figures now; cheap enough to be asked every second."""
