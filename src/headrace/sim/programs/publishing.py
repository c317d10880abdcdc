"""Who publishes: bursts of messages whose ids, keys, delays and expiries are noted before they are posted."""

import asyncio
from typing import Any, Final, cast

from headrace.model.errors import HeadraceError
from headrace.sim.chance import Chance
from headrace.sim.history import ID_HEADER, MARK, History, Publish, value_of
from headrace.sim.loop import Machine
from headrace.sim.plan import Client
from headrace.sim.programs.stage import Stage

MARKS: Final = ("a", "b", "")


async def publish(stage: Stage, machine: Machine, client: Client, chance: Chance) -> None:
    """Posts its bursts, then waits for what became of them (or not, if it is hasty)."""
    connected = await stage.connect(machine, client)
    number = int(machine.name.rsplit("-", 1)[1])
    publisher = connected.publisher(
        client.name, confirm=cast(Any, client.level), compression=cast(Any, client.compression), idempotent=client.idempotent,
        max_in_flight=client.in_flight_max,
    )  # fmt: skip
    for _ in range(client.operations):
        for _ in range(chance.randint(1, client.batch)):
            if stage.stopping or publisher.closed:
                break
            note, value, options = _message(stage.history, client, number, chance)
            try:
                if client.awaited:
                    note.set_result(await publisher.send(value, **options))
                    continue
                if publisher.full:
                    await publisher.room()
                publisher.post_to(note, value, **options)
            except HeadraceError as e:
                note.set_exception(e)
        if stage.over:
            break
        await asyncio.sleep(client.pause_ms * chance.random() / 500)
    if not client.hasty:
        await publisher.flush()
    await connected.close()


def _message(history: History, client: Client, number: int, chance: Chance) -> tuple[Publish, bytes | None, dict[str, Any]]:
    options: dict[str, Any] = {}
    key = f"k{chance.randrange(client.keys)}" if client.keys else None
    mark = chance.choice(MARKS)
    null = client.tombstones > 0 and key is not None and chance.happens(client.tombstones)
    delay_ms = client.delay_ms if chance.happens(client.delay) else 0
    ttl_ms = client.ttl_ms if chance.happens(client.ttl) else 0
    priority = chance.randrange(client.priorities) if client.priorities else 0
    nbytes = int(chance.between(20, max(21, client.bytes_max)))
    note = history.publish(
        client.name, number, order=1 if client.level == "none" else 0, level=client.level, key=key, mark=mark, delay_ms=delay_ms, ttl_ms=ttl_ms,
        priority=priority, idempotent=client.idempotent and client.level != "none", null=null, nbytes=nbytes,
    )  # fmt: skip
    if key is not None:
        options["key"] = key
    if delay_ms:
        options["delay"] = delay_ms / 1000
    if ttl_ms:
        options["ttl"] = ttl_ms / 1000
    if priority:
        options["priority"] = priority
    if mark or null:
        options["headers"] = ({MARK: mark} if mark else {}) | ({ID_HEADER: str(note.id)} if null else {})
    return note, None if null else value_of(note.id, nbytes), options
