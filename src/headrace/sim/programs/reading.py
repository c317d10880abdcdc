"""Who reads streams: records and everything a reader is told are noted, cursors moved."""

import asyncio
from collections.abc import Callable

from headrace.client.reader import Reader, Record
from headrace.model import limits
from headrace.model.errors import HeadraceError
from headrace.sim.chance import Chance
from headrace.sim.history import Attached, Commit, Event, id_of
from headrace.sim.history import Read as ReadNote
from headrace.sim.loop import Machine
from headrace.sim.plan import Client
from headrace.sim.programs.stage import Stage, noted
from headrace.wire import control


def told(stage: Stage, attached: Attached) -> Callable[[control.Event], None]:
    """What a reader is told goes into the history."""
    events, now = stage.history.events, stage.loop.time

    def hear(event: control.Event) -> None:
        if isinstance(event, control.Retracted):
            events.append(Event(now(), attached.number, attached.name, "retracted", event.partition, event.from_offset))
        elif isinstance(event, control.CursorMoved):
            events.append(Event(now(), attached.number, attached.name, "moved", event.partition, event.to_offset))
        elif isinstance(event, control.Assigned):
            for partition in event.revoked:
                events.append(Event(now(), attached.number, attached.name, "revoked", partition, -1))
            for partition, offset in sorted(event.starts.items()):
                events.append(Event(now(), attached.number, attached.name, "assigned", partition, offset))

    return hear


def note_read(stage: Stage, attached: Attached, record: Record) -> int:
    id = id_of(record)
    stage.history.reads.append(
        ReadNote(
            stage.loop.time(), attached.number, attached.name, record.partition, record.offset, record.epoch, id, record.speculative,
            stage.history.watermark(attached.name, record.partition),
        )
    )
    return id


async def read(stage: Stage, machine: Machine, client: Client, chance: Chance) -> None:
    """Reads for its rounds; with a cursor each goes on where the last one stopped."""
    connected = await stage.connect(machine, client)
    for _ in range(client.rounds):
        if stage.over:
            break
        attached = stage.history.attach(machine.name, "reader", client.name)
        attached.cursor, attached.filter, attached.start, attached.group = client.cursor or client.group, client.filter, client.start, client.group
        attached.explicit = client.explicit
        reader = connected.read(
            client.name, start=client.start, cursor=client.cursor, group=client.group, commit="explicit" if client.explicit else "auto",
            prefetch=client.prefetch, filter=client.filter or None, on_event=told(stage, attached),
            prefetch_bytes=client.prefetch_bytes or limits.PREFETCH_BYTES,
        )  # fmt: skip
        try:
            await reader.start()
            await _follow(stage, attached, reader, client, chance)
        except HeadraceError:
            attached.how = "ended"  # deleted, fenced by another reader of its cursor, quarantined
        attached.leaving = stage.loop.time()
        await reader.close()
        attached.how, attached.until = attached.how or "left", stage.loop.time()
        await asyncio.sleep(client.pause_ms / 1000)
    await connected.close()


async def _follow(stage: Stage, attached: Attached, reader: Reader, client: Client, chance: Chance) -> None:
    count, share = 0, client.operations // client.rounds + 1
    try:
        async with asyncio.timeout_at(stage.until):
            while count < share and not stage.stopping:
                record: Record | None = await reader.__anext__()
                while record is not None:
                    note_read(stage, attached, record)
                    count += 1
                    if client.explicit and chance.happens(0.7 if client.singly else 0.3):
                        _commit(stage, attached, record, confirmed=chance.happens(client.confirmed), single=client.singly)
                    record = reader.next_ready() if count < share else None
                await asyncio.sleep(client.pause_ms * chance.random() / 500)
    except (TimeoutError, StopAsyncIteration):
        pass


def _commit(stage: Stage, attached: Attached, record: Record, *, confirmed: bool, single: bool) -> None:
    note = Commit(stage.loop.time(), attached.number, attached.name, attached.cursor, record.partition, record.offset, single)
    stage.history.commits.append(note)
    answer = record.ack(confirmed=confirmed) if single else record.commit(confirmed=confirmed)
    if confirmed:
        noted(note, answer, stage.loop.time)
