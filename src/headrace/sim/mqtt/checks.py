"""I12: what MQTT promises, judged from what clients saw in a whole run (``books``). Pure.

M1 A message of QoS 1 or 2 that was acknowledged came to every session that outlives its connection and was subscribed before; of a shared
subscription to a member. M2 Nothing comes that nobody sent, nor on a topic that is not its own. M3 QoS 2 comes to a session once, QoS 0 at most once;
nothing is sent again on the connection that it was sent on.
M4 The messages of one publisher to one topic come in their order. M5 What every broker tells a new subscriber of a topic is its last acknowledged
write, or a later one. M6 A will comes once if its client died, never if it said goodbye. Seen by the clients themselves: M7 a session is there when
its client comes back. M8 who was taken over is not served any more, and in the end every client has one connection.
"""

from collections import Counter
from collections.abc import Iterator
from functools import lru_cache

from headrace.core.mqtt import topics
from headrace.sim.mqtt.books import NEVER, Books, Kept, Published, Wanted

matches = lru_cache(maxsize=1024)(topics.matches)
"""A run has few filters and topics, and asks of each pair a thousand times."""


def covers(wanted: Wanted, message: Published) -> bool:
    """Whether that subscription must get it: it was known before it was sent, and not given up before it was acknowledged."""
    until = NEVER if message.will else message.acked_at
    return wanted.known_at < message.at and (wanted.gone_at == NEVER or wanted.gone_at > until) and matches(wanted.path, message.topic)


def owed(message: Published) -> bool:
    """Whether it has to come to who wants it."""
    if message.will:
        return message.due > 0
    return message.acked_at != NEVER and message.qos > 0


def missing(books: Books) -> Iterator[str]:
    """M1 and the lower half of M6: what has not come yet and must."""
    taken = {client_id: {got.number for got in kept.got} for client_id, kept in books.sessions.items()}
    members = {k.client_id for k in books.sessions.values() if any(w.group for w in k.wanted)}
    for message in books.messages.values():
        if not owed(message) or message.clears:
            continue
        rule = "M6 the will" if message.will else "M1"
        groups: dict[str, bool] = {}
        for kept in books.sessions.values():
            if not kept.durable:
                continue
            for wanted in kept.wanted:
                if not covers(wanted, message):
                    continue
                here = message.number in taken[kept.client_id]
                if wanted.group:
                    groups[wanted.filter] = groups.get(wanted.filter, False) or here
                elif not here:
                    yield f"{rule} {_named(message)} has not come to {kept.client_id}, which knew {wanted.filter} from {wanted.known_at:.3f} on"
        for name, found in groups.items():
            if not found and not any(message.number in taken[id] for id in members):
                yield f"{rule} {_named(message)} has come to no member of {name}"


def wrong(books: Books) -> Iterator[str]:
    """M2, M3, M4 and the upper half of M6."""
    for kept in books.sessions.values():
        yield from _nothing_strange(books, kept)
        yield from _once(books, kept)
        yield from _in_order(books, kept)


def _nothing_strange(books: Books, kept: Kept) -> Iterator[str]:
    for got in kept.got:
        message = books.messages.get(got.number)
        if message is None:
            yield f"M2 {got.number} came to {kept.client_id} and nobody sent it"
        elif message.at == NEVER and not message.will:
            yield f"M2 {_named(message)} came to {kept.client_id} before it was sent"


def _once(books: Books, kept: Kept) -> Iterator[str]:
    for (_, number), times in Counter((got.session, got.number) for got in kept.got if not got.retain).items():
        message = books.messages.get(number)
        if message is None:
            continue
        if message.will and times > message.most and (min(message.qos, kept.qos) == 2 or not message.most):
            yield f"M6 the will {_named(message)} came to {kept.client_id} {times} times"
        elif message.will:
            continue
        elif message.qos == 2 == kept.qos and times > 1:
            yield f"M3 {_named(message)}, of QoS 2, came to {kept.client_id} {times} times"
        elif message.qos == 0 and times > 1:
            yield f"M3 {_named(message)}, of QoS 0, came to {kept.client_id} {times} times"


def _in_order(books: Books, kept: Kept) -> Iterator[str]:
    if not kept.durable or any(wanted.group for wanted in kept.wanted):
        return  # a new session gets what is sent again, of which the last one had more; a member gets what another has left
    newest: dict[tuple[str, str], int] = {}
    seen: set[int] = set()
    for got in kept.got:
        message = books.messages.get(got.number)
        if message is None or got.retain or message.will or got.number in seen or message.qos == 0 or kept.qos == 0:
            continue
        seen.add(got.number)
        if not any(w.acked_at < message.at and w.gone_at > got.at and matches(w.path, message.topic) for w in kept.wanted):
            continue  # it came when it was sent again, and others before, in between it was subscribed
        key = message.publisher, message.topic
        before = newest.get(key, 0)
        if got.number < before:
            yield f"M4 {_named(message)} came to {kept.client_id} after {before}, at {got.at:.3f}"
        newest[key] = max(before, got.number)


def retained(books: Books, topic: str, found: dict[str, int]) -> Iterator[str]:
    """M5. ``found``: by broker, the number that a new subscriber got, 0 = nothing."""
    writes = [m for m in books.messages.values() if m.topic == topic and m.retain and m.at != NEVER]
    acked = [i for i, m in enumerate(writes) if m.acked_at != NEVER]
    allowed = {0 if m.clears else m.number for m in writes[acked[-1] if acked else 0 :]} | (set() if acked else {0})
    for broker, number in found.items():
        if number not in allowed:
            yield f"M5 {broker} has {number} for {topic}, where the last write is of {sorted(allowed)}"
    if len(set(found.values())) > 1:
        yield f"M5 the brokers do not agree on {topic}: {found}"


def _named(message: Published) -> str:
    text = f"{message.number} of {message.publisher} to {message.topic}"
    acked = f", acknowledged at {message.acked_at:.3f}" if message.acked_at != NEVER else ""
    return f"{text} (sent at {message.at:.3f}{acked})"
