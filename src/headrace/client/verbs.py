"""The control verbs of the client: each one control message and its answer.

Knows no connection: ``_request`` is given by the client. A verb that is as good done twice as once is repeated when the connection breaks; the
others (move, redrive, drain) raise ``ConnectionLost``, whose outcome is unknown.
"""

from typing import Any, Literal, TypeVar

import msgspec

from headrace.core.filters import parse
from headrace.model.errors import Invalid
from headrace.model.specs import QueueSpec, StreamSpec, meant
from headrace.wire import control

M = TypeVar("M", bound=control.Message)
Filtered = str | control.Filter | None


class Verbs:
    """See the module's head."""

    async def _request(self, message: control.Message, expected: type[M], *, again: bool = True, timeout_s: float | None = None) -> M:
        raise NotImplementedError

    # ------------------------------------------------------------ catalogue

    async def declare_queue(self, /, name: str, spec: QueueSpec | None = None, **settings: Any) -> control.Info:
        """Declares a queue (see ``QueueSpec`` for the settings). Doing it again with the same settings is fine, with others ``Conflict``."""
        wanted = _spec(QueueSpec, spec, settings)
        return await self._request(control.DeclareQueue(name=name, spec=wanted, given=meant(wanted, settings)), control.Info)

    async def declare_stream(self, /, name: str, spec: StreamSpec | None = None, **settings: Any) -> control.Info:
        """Declares a stream (see ``StreamSpec`` for the settings)."""
        wanted = _spec(StreamSpec, spec, settings)
        return await self._request(control.DeclareStream(name=name, spec=wanted, given=meant(wanted, settings)), control.Info)

    async def alter_queue(self, /, name: str, **changes: Any) -> control.Info:
        """Changes settings of a queue; those that are fixed at declaration are refused."""
        return await self._request(control.AlterQueue(name=name, changes=changes), control.Info)

    async def alter_stream(self, /, name: str, **changes: Any) -> control.Info:
        return await self._request(control.AlterStream(name=name, changes=changes), control.Info)

    async def delete(self, name: str, *, if_empty: bool = False, kind: Literal["", "queue", "stream"] = "") -> None:
        """Deletes a queue or stream and everything in it."""
        await self._request(control.Delete(name=name, kind=kind, if_empty=if_empty), control.Done, again=False)

    async def list(self, pattern: str = "*", *, kind: Literal["", "queue", "stream"] = "", limit: int = 10_000) -> "list[control.Info]":
        """Queues and streams whose name matches the glob, in order of name, at most ``limit``."""
        found: list[control.Info] = []
        after = ""
        while len(found) < limit:
            page = await self._request(control.List(kind=kind, pattern=pattern, after=after, limit=min(1000, limit - len(found))), control.Listing)
            found += page.items
            if not page.more or not page.items:
                break
            after = page.items[-1].name
        return found

    async def describe(self, name: str) -> control.Info:
        """Settings, figures and partitions of a queue or stream."""
        return await self._request(control.Describe(name=name), control.Info)

    # ------------------------------------------------------------ queues

    async def inspect(
        self,
        name: str,
        *,
        state: Literal["ready", "leased", "delayed", "any"] = "ready",
        limit: int = 20,
        partition: int = -1,
        after: int = -1,
        filter: Filtered = None,
        payload_bytes_max: int = 65_536,
    ) -> tuple[control.Peeked, ...]:
        """Looks at messages without taking them."""
        asked = control.Inspect(
            name=name, state=state, partition=partition, after=after, limit=limit, payload_bytes_max=payload_bytes_max, filter=_filter(filter)
        )
        return (await self._request(asked, control.Inspected)).messages

    async def purge(self, name: str, *, leased: bool = False, partition: int = -1) -> int:
        """Drops ready and delayed messages (leased ones only with ``leased``) and says how many."""
        return (await self._request(control.Purge(name=name, partition=partition, leased=leased), control.Done)).count

    async def pause(self, name: str) -> None:
        """Stops delivery; publishes and settlements go on."""
        await self._request(control.Pause(name=name, paused=True), control.Done)

    async def resume(self, name: str) -> None:
        """Delivers again."""
        await self._request(control.Pause(name=name, paused=False), control.Done)

    async def repartition(self, name: str, partitions: int, *, force: bool = False) -> control.Info:
        """Begins to give a queue more or fewer partitions while it is used; ``describe`` shows how far that is (``routing``, None = done). The order
        of every key is kept, unless with ``force``: then nothing is held back, and what is left in partitions that are given up is moved."""
        return await self._request(control.Repartition(name=name, partitions=partitions, force=force), control.Info)

    async def move(self, name: str, to: str, *, filter: Filtered = None, limit: int = 0, rate: int = 0) -> control.Progress:
        """Begins to move ready messages to another queue or stream, each exactly once; see ``transfer``."""
        return await self._progress(control.Move(name=name, to=to, filter=_filter(filter), limit=limit, rate=rate))

    async def redrive(self, name: str, *, to: str = "", filter: Filtered = None, limit: int = 0, rate: int = 0) -> control.Progress:
        """Begins to move dead letters back to where they came from (or to ``to``); see ``transfer``."""
        return await self._progress(control.Redrive(name=name, to=to, filter=_filter(filter), limit=limit, rate=rate))

    async def transfer(self, id: int, *, cancel: bool = False) -> control.Progress:
        """Where a move or redrive stands."""
        return await self._request(control.TransferStatus(id=id, cancel=cancel), control.Progress)

    async def _progress(self, message: control.Message) -> control.Progress:
        return await self._request(message, control.Progress, again=False)

    # ------------------------------------------------------------ streams

    async def offset_for_time(self, name: str, timestamp_ms: int) -> dict[int, int]:
        """First offset appended at or after that time, per partition."""
        return (await self._request(control.OffsetForTime(name=name, timestamp_ms=timestamp_ms), control.Offsets)).offsets

    async def trim(self, name: str, *, partition: int = -1, offset: int = -1, before_ms: int = -1) -> None:
        """Gives up what lies below ``offset`` (of one partition) or is older than ``before_ms``."""
        await self._request(control.Trim(name=name, partition=partition, offset=offset, before_ms=before_ms), control.Message)

    async def cursors(self, name: str) -> tuple[control.CursorInfo, ...]:
        """The durable cursors of a stream with their lag."""
        return (await self._request(control.CursorsList(name=name), control.Cursors)).cursors

    async def set_cursor(self, name: str, cursor: str, to: str | int = "earliest", *, partition: int = -1) -> None:
        """Sets a cursor to an offset, ``earliest``, ``latest``, ``timestamp:MS`` or ``last:N``."""
        where = f"offset:{to}" if isinstance(to, int) else to
        await self._request(control.CursorSet(name=name, cursor=cursor, partition=partition, to=where), control.Message)

    async def delete_cursor(self, name: str, cursor: str) -> None:
        await self._request(control.CursorDelete(name=name, cursor=cursor), control.Message)

    # ------------------------------------------------------------ the broker

    async def status(self) -> control.BrokerStatus:
        return await self._request(control.Status(), control.BrokerStatus)

    async def drain(self, grace_ms: int = 5000, message: str = "") -> None:
        """Asks the broker to tell its clients, finish and stop."""
        await self._request(control.Drain(grace_ms=grace_ms, message=message), control.Done, again=False)

    async def quarantine(self) -> tuple[control.QuarantineItem, ...]:
        """Damaged partitions that are set apart."""
        return (await self._request(control.QuarantineList(), control.Quarantine)).items

    async def repair(self, name: str, *, partition: int = -1, dry_run: bool = False) -> control.Message:
        """Cuts a damaged partition to its last valid point and serves it again."""
        return await self._request(control.QuarantineRepair(name=name, partition=partition, dry_run=dry_run), control.Message, again=False)

    async def topology(self, *names: str) -> control.TopologyInfo:
        """Which broker owns which partition."""
        return await self._request(control.Topology(names=names), control.TopologyInfo)

    async def connections(self) -> tuple[control.ConnectionInfo, ...]:
        return (await self._request(control.ConnectionsList(), control.Connections)).connections


S = TypeVar("S", QueueSpec, StreamSpec)


def _spec(kind: type[S], spec: S | None, settings: dict[str, Any]) -> S:
    if spec is not None and not settings:
        return spec
    given = {**(msgspec.to_builtins(spec) if spec is not None else {}), **settings}
    try:
        return msgspec.convert(given, kind)
    except msgspec.ValidationError as e:
        known = ", ".join(kind.__struct_fields__)
        raise Invalid(f"settings: {e}", hint=f"the settings are: {known}") from None


def _filter(given: Filtered) -> control.Filter | None:
    return parse(given) if isinstance(given, str) else given
