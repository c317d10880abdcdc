"""Who operates: one verb after the other, and declaring what a plan names."""

import asyncio
from typing import Any, cast

from msgspec.structs import replace

from headrace.client.client import Client as Connected
from headrace.model.errors import HeadraceError, NotFound
from headrace.model.specs import QueueSpec, StreamSpec
from headrace.sim.chance import Chance
from headrace.sim.history import DONE, REFUSED, UNKNOWN
from headrace.sim.loop import Machine
from headrace.sim.plan import DEAD, Client
from headrace.sim.programs.hand import Hand
from headrace.sim.programs.stage import Stage


async def administer(stage: Stage, machine: Machine, client: Client, chance: Chance) -> None:
    """Asks for one verb after the other."""
    connected = await stage.connect(machine, client)
    for verb in client.verbs[: client.operations]:
        if stage.over:
            break
        if client.impatient and chance.happens(client.impatient):
            stage.loop.post(None, chance.between(0.0005, 0.3), stage.world.network.break_connections, machine.name)
        await ask(stage, connected, client, verb, chance)
        await asyncio.sleep(client.pause_ms * chance.random() / 500)
    await connected.close()


async def ask(stage: Stage, connected: Connected, client: Client, verb: str, chance: Chance) -> None:
    """One verb and its outcome."""
    history, name = stage.history, client.name
    others = [n.name for n in stage.plan.names if n.queue is not None and n.name != name]
    target = chance.choice(others) if others else ""
    if verb == "move" and not target:
        return
    note = history.verb(verb, name, target if verb == "move" else (0, False) if verb == "repartition" else None)
    try:
        if verb in ("purge", "purge_leased"):
            note.count = await connected.purge(name, leased=verb == "purge_leased")
        elif verb == "pause":
            await _pause(stage, connected, name)
            begun = stage.loop.time()
            pause_s = client.pause_ms * chance.random() / 1000
            await (_probe(stage, connected, client, pause_s, chance) if client.probes else asyncio.sleep(pause_s))
            note.rows = (begun, stage.loop.time())
            await connected.resume(name)
        elif verb == "move":
            note.rows = (await connected.move(name, target, limit=chance.choice([0, 3]))).id
        elif verb == "redrive":
            # out of the dead letters, if there are any, and back to where they came from
            dead = DEAD if DEAD in others else name
            note.name, note.what = dead, ""
            note.rows = (await connected.redrive(dead)).id
        elif verb == "alter":
            await _alter(stage, connected, name, note, chance)
        elif verb == "repartition":
            note.what = (chance.choice([1, 2, 3, 4, 6]), chance.happens(0.1))
            await connected.repartition(name, note.what[0], force=note.what[1])
        elif verb == "alter_stream":
            changes = {"retention_records": int(chance.between(20, 2000))}
            note.what = changes
            history.declared(name, cast(StreamSpec, _with(stage, name, changes)))
            await connected.alter_stream(name, **changes)
        elif verb == "recreate":
            await _recreate(stage, connected, name)
        elif verb == "trim":
            await connected.trim(name, before_ms=machine_ms(stage) - chance.choice([0, 100, 500, 2000]))
            note.rows = (await connected.describe(name)).partitions
        elif verb == "set_cursor":
            note.what = chance.choice(["c0", "c1", "readers"])
            await connected.set_cursor(name, note.what, chance.choice(["earliest", "latest"]))
        elif verb == "cursors":
            note.rows = await connected.cursors(name)
        elif verb == "inspect":
            note.rows = await connected.inspect(name, state="any", limit=20)
        else:
            note.rows = (await connected.describe(name)).partitions
        note.outcome = DONE
    except HeadraceError as e:
        note.outcome = REFUSED if e.definite else UNKNOWN
        if verb == "pause":
            note.outcome = UNKNOWN
    note.told_at = stage.loop.time()


async def _pause(stage: Stage, connected: Connected, name: str) -> None:
    """Asks again as soon as it can if the connection broke before the answer came."""
    while True:
        try:
            await connected.pause(name)
            return
        except HeadraceError as e:
            if stage.over or (e.definite and not e.retriable):
                raise
        await asyncio.sleep(0.002)


async def _probe(stage: Stage, connected: Connected, client: Client, seconds: float, chance: Chance) -> None:
    """Comes as a consumer of the paused queue for so long: nothing may be delivered."""
    attached = stage.history.attach(stage.loop.ambient.name, "consumer", client.name)
    consumer = connected.consume(client.name, prefetch=10)
    Hand(stage, attached, consumer, client, chance)
    try:
        async with asyncio.timeout(seconds):
            await consumer.start()
            await asyncio.sleep(seconds)
    except TimeoutError:
        pass
    except HeadraceError:
        attached.how = "ended"
    attached.leaving = stage.loop.time()
    await consumer.close()
    attached.how, attached.until = attached.how or "left", stage.loop.time()


def machine_ms(stage: Stage) -> int:
    return stage.loop.ambient.wall_ns() // 1_000_000


def _with(stage: Stage, name: str, changes: dict[str, Any]) -> QueueSpec | StreamSpec:
    return replace(stage.history.specs[name][-1][1], **changes)


async def _alter(stage: Stage, connected: Connected, name: str, note: Any, chance: Chance) -> None:
    changes: dict[str, Any] = chance.choice(
        [{"lease_ms": int(chance.between(150, 3000))}, {"max_deliveries": chance.randint(0, 6)}, {"backoff_ms": [20]}, {"max_messages": 500}]
    )
    note.what = changes
    held = {field: tuple(value) if isinstance(value, list) else value for field, value in changes.items()}
    stage.history.declared(name, cast(QueueSpec, _with(stage, name, held)))
    await connected.alter_queue(name, **changes)


async def _recreate(stage: Stage, connected: Connected, name: str) -> None:
    try:
        await connected.delete(name)
    finally:
        await declare(stage, connected, name)


async def declare(stage: Stage, connected: Connected, name: str) -> None:
    """Declares a name of the plan, however long that takes."""
    spec = stage.plan.spec(name)
    while not stage.stopping:
        try:
            if isinstance(spec, QueueSpec):
                await connected.declare_queue(name, spec)
            else:
                await connected.declare_stream(name, spec)
            return
        except NotFound:
            pass
        except HeadraceError as e:
            if e.definite and not e.retriable:
                return
        await asyncio.sleep(0.1)
