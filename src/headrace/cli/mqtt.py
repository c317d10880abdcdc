"""``headrace mqtt``: sessions, subscriptions and retained messages of MQTT clients; kicking one, publishing."""

import sys
import time
from typing import Annotated, Final

import typer

from headrace.cli.asking import Asker, ask
from headrace.cli.options import DEFAULT_URL, AsJson, Pattern, Url, Yes, duration_ms
from headrace.cli.output import confirm, count, emit, readable, size, span, table
from headrace.model import limits
from headrace.model.errors import Invalid, NotFound, TooLarge
from headrace.wire import control
from headrace.wire.control import mqtt as asked

PAGE: Final = 1000
app = typer.Typer(no_args_is_help=True, help="MQTT: sessions, subscriptions, retained messages; kick a client, publish.")
sessions = typer.Typer(no_args_is_help=True, help="What the broker keeps for clients.")
subscriptions = typer.Typer(no_args_is_help=True, help="Who has subscribed to what.")
retained = typer.Typer(no_args_is_help=True, help="The last messages of topics.")
app.add_typer(sessions, name="sessions")
app.add_typer(subscriptions, name="subscriptions")
app.add_typer(retained, name="retained")

Limit = Annotated[int, typer.Option("--limit", min=1, help="Most rows.")]
Client = Annotated[str, typer.Argument(metavar="CLIENT", help="Client id.")]
TopicFilter = Annotated[str, typer.Argument(metavar="[FILTER]", help="MQTT topic filter, for instance sensors/+/temperature.")]


@sessions.command("list")
def sessions_list(pattern: Pattern = "*", limit: Limit = PAGE, url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """Sessions in order of their client ids."""
    items: list[asked.MqttSession] = []
    with Asker(url) as asker:
        more = True
        while more and len(items) < limit:
            after = items[-1].client_id if items else ""
            page = asker.ask(asked.MqttSessions(pattern=pattern, after=after, limit=min(PAGE, limit - len(items))), asked.MqttSessionList)
            items.extend(page.items)
            more = page.more
    rows = [
        [
            s.client_id, f"{s.version} from {s.peer}" if s.connected else f"away for {_since(s.away_ms)}", _expiry(s), count(s.subscriptions),
            count(s.waiting), size(s.waiting_bytes), count(s.in_flight), count(s.dropped),
        ]
        for s in items
    ]  # fmt: skip
    columns = ["CLIENT", "CONNECTION", "KEPT", ">SUBSCRIPTIONS", ">WAITING", ">SIZE", ">IN FLIGHT", ">DROPPED"]
    emit(asked.MqttSessionList(items=tuple(items), more=more), as_json, lambda: table(columns, rows, none="no session"))


@sessions.command("show")
def sessions_show(client: Client, url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """One session, with its subscriptions."""
    with Asker(url) as asker:
        page = asker.ask(asked.MqttSessions(pattern=client, limit=10_000), asked.MqttSessionList)
        found = next((s for s in page.items if s.client_id == client), None)
        if found is None:
            raise NotFound(f"no MQTT client {client!r} has a session there", hint="`headrace mqtt sessions list` shows those that have")
        kept = asker.ask(asked.MqttSubscriptions(pattern=client, limit=10_000), asked.MqttSubscriptionList)
    mine = tuple(s for s in kept.items if s.client_id == client)

    def text() -> None:
        where = f"is connected from {found.peer}, MQTT {found.version}" if found.connected else f"is away for {_since(found.away_ms)}"
        print(f"{client} {where}; kept: {_expiry(found)}{'; it has a will' if found.will else ''}")
        print(f"  {count(found.waiting)} waiting ({size(found.waiting_bytes)}), {count(found.in_flight)} in flight, {count(found.dropped)} dropped")
        _subscriptions(mine)

    emit({"session": found, "subscriptions": mine}, as_json, text)


@subscriptions.command("list")
def subscriptions_list(
    filter: Annotated[str, typer.Argument(metavar="[FILTER]", help="Glob over filters as clients wrote them: * any run, ? one character.")] = "*",
    client: Annotated[str, typer.Option("--client", help="Glob over client ids.")] = "*",
    limit: Limit = PAGE, url: Url = DEFAULT_URL, as_json: AsJson = False,
) -> None:  # fmt: skip
    """Subscriptions in order of client ids and filters."""
    items: list[asked.MqttSubscription] = []
    with Asker(url) as asker:
        more = True
        while more and len(items) < limit:
            last = (items[-1].client_id, items[-1].filter) if items else ("", "")
            wanted = asked.MqttSubscriptions(
                pattern=client, filter=filter, after_client_id=last[0], after_filter=last[1], limit=min(PAGE, limit - len(items))
            )
            page = asker.ask(wanted, asked.MqttSubscriptionList)
            items.extend(page.items)
            more = page.more
    emit(asked.MqttSubscriptionList(items=tuple(items), more=more), as_json, lambda: _subscriptions(tuple(items)))


@retained.command("list")
def retained_list(filter: TopicFilter = "#", limit: Limit = PAGE, url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """Retained messages in order of their topics."""
    items: list[asked.MqttRetainedMessage] = []
    with Asker(url) as asker:
        more = True
        while more and len(items) < limit:
            after = items[-1].topic if items else ""
            wanted = asked.MqttRetained(filter=filter, after=after, limit=min(PAGE, limit - len(items)), payload_bytes_max=64)
            page = asker.ask(wanted, asked.MqttRetainedList)
            items.extend(page.items)
            more = page.more
    rows = [[m.topic, str(m.qos), size(m.payload_bytes), m.publisher, readable(m.payload, 40)] for m in items]
    columns = ["TOPIC", ">QOS", ">SIZE", "PUBLISHER", "PAYLOAD"]
    emit(asked.MqttRetainedList(items=tuple(items), more=more), as_json, lambda: table(columns, rows, none="no retained message"))


@retained.command("show")
def retained_show(
    topic: Annotated[str, typer.Argument(metavar="TOPIC", help="Its name, without wildcards.")], url: Url = DEFAULT_URL, as_json: AsJson = False
) -> None:
    """One retained message, whole."""
    if "+" in topic or "#" in topic:
        raise Invalid("a topic name has no wildcards", hint="`headrace mqtt retained list FILTER` shows several")
    page = ask(url, asked.MqttRetained(filter=topic, payload_bytes_max=limits.CONTROL_BYTES_MAX), asked.MqttRetainedList)
    if not page.items:
        raise NotFound(f"topic {topic!r} has no retained message", hint="`headrace mqtt retained list` shows those that have")
    found = page.items[0]

    def text() -> None:
        print(f"{found.topic}: {size(found.payload_bytes)}, QoS {found.qos}{f', from {found.publisher}' if found.publisher else ''}")
        for name, value in (("content type", found.content_type), ("response topic", found.response_topic), *found.user_properties):
            if value:
                print(f"  {name}: {value}")
        print(readable(found.payload, limits.CONTROL_BYTES_MAX))

    emit(found, as_json, text)


@retained.command("clear")
def retained_clear(
    filter: Annotated[str, typer.Argument(metavar="FILTER", help="MQTT topic filter; # = all.")],
    yes: Yes = False, url: Url = DEFAULT_URL, as_json: AsJson = False,
) -> None:  # fmt: skip
    """Clear the retained messages that a filter matches. Subscribers are not told."""
    confirm(f"Clear every retained message that {filter} matches?", yes=yes, as_json=as_json)
    done = ask(url, asked.MqttClear(filter=filter), control.Done)
    emit(done, as_json, lambda: print(f"{count(done.count)} cleared"))


@app.command("kick")
def kick(
    client: Client, forget: Annotated[bool, typer.Option("--forget", help="End its session too, also if it is away.")] = False,
    yes: Yes = False, url: Url = DEFAULT_URL, as_json: AsJson = False,
) -> None:  # fmt: skip
    """End a client's connection; its will is published."""
    if forget:
        confirm(f"End the session of {client}? What waits for it is lost.", yes=yes, as_json=as_json)
    done = ask(url, asked.MqttKick(client_id=client, forget=forget), control.Done)
    emit(done, as_json, lambda: print(f"{client} kicked{'; its session has ended' if forget else ''}"))


@app.command("publish")
def publish(
    topic: Annotated[str, typer.Argument(metavar="TOPIC", help="Topic name.")],
    payload: Annotated[str, typer.Argument(metavar="[PAYLOAD]", help="Text; - = what is piped in.")] = "",
    qos: Annotated[int, typer.Option("--qos", min=0, max=2, help="0, 1 or 2.")] = 1,
    retain: Annotated[bool, typer.Option("--retain", help="Keep it as the last message of its topic; an empty one clears that.")] = False,
    expiry: Annotated[str | None, typer.Option("--expiry", help="After which it is not delivered any more, for instance 1h.")] = None,
    content_type: Annotated[str, typer.Option("--content-type", help="Told to subscribers.")] = "",
    url: Url = DEFAULT_URL, as_json: AsJson = False,
) -> None:  # fmt: skip
    """Publish one message; answered once it is durable for every session that it matched."""
    data = sys.stdin.buffer.read(limits.CONTROL_BYTES_MAX + 1) if payload == "-" else payload.encode()
    if len(data) > limits.CONTROL_BYTES_MAX - 64 * 1024:
        raise TooLarge(f"at most {size(limits.CONTROL_BYTES_MAX - 64 * 1024)} can be published from here", hint="use an MQTT client")
    expiry_s = -(-(duration_ms(expiry, "--expiry") or 0) // 1000)
    wanted = asked.MqttPublish(topic=topic, payload=data, qos=qos, retain=retain, expiry_s=expiry_s, content_type=content_type)
    done = ask(url, wanted, control.Done)
    emit(done, as_json, lambda: print(f"published to {topic}: {count(done.count)} session{'' if done.count == 1 else 's'} matched"))


def _subscriptions(items: tuple[asked.MqttSubscription, ...]) -> None:
    rows = [
        [
            s.client_id, s.filter, str(s.qos), str(s.identifier or ""),
            ", ".join(name for name, on in (("no local", s.no_local), ("retain as published", s.retain_as_published)) if on),
        ]
        for s in items
    ]  # fmt: skip
    table(["CLIENT", "FILTER", ">QOS", ">IDENTIFIER", ""], rows, none="no subscription")


def _since(wall_ms: int) -> str:
    return span(max(0, time.time_ns() // 1_000_000 - wall_ms))


def _expiry(s: asked.MqttSession) -> str:
    if s.expiry_s == asked.FOR_EVER:
        return "for ever"
    return span(s.expiry_s * 1000) if s.expiry_s else "while connected"
