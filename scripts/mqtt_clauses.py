"""docs/mqtt-conformance.md: the normative clauses of MQTT 5.0 and 3.1.1 that bind a broker, where the code obeys them, and the tests that prove it.

The code names a clause of 5.0 at its branch as ``[MQTT-x.y.z-n]``; a test names it in ``@pytest.mark.mqtt("x.y.z-n", ...)``, one of 3.1.1 in
``@pytest.mark.mqtt3``. Texts are ours; the specification's are at https://docs.oasis-open.org/mqtt/mqtt/v5.0/mqtt-v5.0.html.
"""

import ast
import re
from pathlib import Path
from typing import Final

from mqtt_clauses_3 import CLAUSES_3, NOT_A_SERVERS_3

ROOT = Path(__file__).resolve().parent.parent
CLAUSES: Final = {
    "1.5.4-1": "strings are well-formed UTF-8 without surrogates",
    "1.5.4-2": "strings hold no U+0000",
    "1.5.4-3": "U+FEFF is a character like others",
    "1.5.5-1": "variable byte integers have no superfluous bytes",
    "1.5.7-1": "both halves of a user property are strings",
    "2.1.3-1": "reserved flags have the value that is given for them",
    "2.2.1-2": "QoS 0 has no packet identifier",
    "2.2.1-3": "identifiers of a client's packets are not 0",
    "2.2.1-4": "an identifier is not given out while it is in use",
    "2.2.1-5": "acknowledgements name the publish they are for",
    "2.2.1-6": "SUBACK and UNSUBACK name what they answer",
    "2.2.2-1": "no properties are a length of 0",
    "3.1.0-1": "the first packet is CONNECT",
    "3.1.0-2": "a second CONNECT ends the connection",
    "3.1.2-1": "another protocol name is refused",
    "3.1.2-2": "another version is refused",
    "3.1.2-3": "the reserved flag of CONNECT is 0",
    "3.1.2-4": "clean start ends the old session",
    "3.1.2-5": "without it an existing session goes on",
    "3.1.2-6": "without it, and without a session, one begins",
    "3.1.2-7": "a will is kept with the session",
    "3.1.2-8": "it is published after its delay or at the session's end, unless taken back",
    "3.1.2-9": "a will has properties, a topic and a payload",
    "3.1.2-10": "a will is gone once published or after DISCONNECT 0x00",
    "3.1.2-11": "no will: will QoS is 0",
    "3.1.2-12": "will QoS is not 3",
    "3.1.2-13": "no will: will retain is 0",
    "3.1.2-14": "a will without retain is not retained",
    "3.1.2-15": "a will with retain is retained",
    "3.1.2-16": "no user name flag, no user name",
    "3.1.2-17": "user name flag, user name",
    "3.1.2-18": "no password flag, no password",
    "3.1.2-19": "password flag, password",
    "3.1.2-22": "silence of 1.5 times the keep-alive ends the connection",
    "3.1.2-23": "a session with an expiry outlives its connection",
    "3.1.2-24": "no packet above the client's maximum is sent",
    "3.1.2-25": "what is too large counts as sent",
    "3.1.2-26": "no alias above the client's maximum is sent",
    "3.1.2-27": "no alias at all without a maximum",
    "3.1.2-28": "no response information unless asked for",
    "3.1.2-29": "no reasons in words if the client wants none",
    "3.1.3-1": "the payload of CONNECT has its order",
    "3.1.3-2": "the client id names the session",
    "3.1.3-3": "there is a client id",
    "3.1.3-4": "it is a string",
    "3.1.3-5": "ids of 1 to 23 letters and digits are taken",
    "3.1.3-6": "an empty id is given one that is unique",
    "3.1.3-7": "and told which",
    "3.1.3-8": "an id may be refused with 0x85, then close",
    "3.1.3-9": "no will if the client is back within its delay",
    "3.1.3-10": "user properties of a will keep their order",
    "3.1.3-11": "the will's topic is a string",
    "3.1.3-12": "the user name is a string",
    "3.1.4-1": "a malformed CONNECT closes",
    "3.1.4-2": "a refused one too",
    "3.1.4-3": "a takeover tells the old connection 0x8E and closes it",
    "3.1.4-4": "clean start is done",
    "3.1.4-5": "an accepted CONNECT is answered with 0x00",
    "3.1.4-6": "nothing is done for a refused one",
    "3.2.0-1": "CONNACK comes before anything else",
    "3.2.0-2": "once",
    "3.2.2-1": "its other flags are 0",
    "3.2.2-2": "clean start: no session present",
    "3.2.2-3": "session present says whether there was one",
    "3.2.2-6": "a refusal says no session present",
    "3.2.2-7": "a refusal closes",
    "3.2.2-8": "its reason is one of CONNACK's",
    "3.2.2-16": "an assigned id is told and nobody else's",
    "3.2.2-19": "a reason in words is left out where it does not fit",
    "3.2.2-20": "user properties too",
    "3.2.2-22": "without a server keep-alive the client's holds",
    "3.3.1-1": "DUP when sent again",
    "3.3.1-2": "never with QoS 0",
    "3.3.1-3": "DUP towards a subscriber is the broker's own",
    "3.3.1-4": "QoS 3 is malformed",
    "3.3.1-5": "retain replaces the topic's message",
    "3.3.1-6": "an empty payload clears it",
    "3.3.1-7": "and is not kept",
    "3.3.1-8": "without retain the topic's message stays; a retained one is sent with retain",
    "3.3.1-9": "retain handling 0: at each subscribe",
    "3.3.1-10": "1: at a new subscription",
    "3.3.1-11": "2: never",
    "3.3.1-12": "retain as published 0: sent without retain",
    "3.3.1-13": "1: as it came",
    "3.3.2-1": "a topic name is a string, first in PUBLISH",
    "3.3.2-2": "without wildcards",
    "3.3.2-3": "what is sent matches the filter",
    "3.3.2-4": "payload format is passed on",
    "3.3.2-5": "what has expired is not sent",
    "3.3.2-6": "expiry counts down",
    "3.3.2-7": "aliases end with the connection",
    "3.3.2-8": "alias 0 is none",
    "3.3.2-9": "an alias above the broker's maximum ends the connection",
    "3.3.2-11": "the client's maximum of aliases is kept",
    "3.3.2-12": "all aliases up to the broker's maximum are taken",
    "3.3.2-13": "a response topic is a string",
    "3.3.2-14": "without wildcards",
    "3.3.2-15": "and passed on",
    "3.3.2-16": "correlation data are passed on",
    "3.3.2-17": "user properties are passed on",
    "3.3.2-18": "in their order",
    "3.3.2-19": "the content type is a string",
    "3.3.2-20": "and passed on",
    "3.3.4-1": "a publish is answered as its QoS says",
    "3.3.4-2": "overlapping subscriptions: the highest QoS",
    "3.3.4-3": "subscription identifiers go with it",
    "3.3.4-4": "all of them, where there is one copy",
    "3.3.4-6": "a client sends none",
    "3.3.4-9": "the client's receive maximum is kept",
    "3.3.4-10": "other packets go on meanwhile",
    "3.4.2-1": "PUBACK has one of its reasons",
    "3.5.2-1": "PUBREC too",
    "3.6.1-1": "PUBREL has its flags",
    "3.6.2-1": "and one of its reasons",
    "3.7.2-1": "PUBCOMP has one of its reasons",
    "3.8.1-1": "SUBSCRIBE has its flags",
    "3.8.3-1": "filters are strings",
    "3.8.3-2": "at least one",
    "3.8.3-3": "no local: nothing of one's own",
    "3.8.3-4": "not with a shared subscription",
    "3.8.3-5": "reserved options are 0",
    "3.8.4-1": "SUBSCRIBE is answered",
    "3.8.4-2": "by its identifier",
    "3.8.4-3": "the same filter replaces the subscription",
    "3.8.4-4": "and gets retained messages again, nothing lost",
    "3.8.4-5": "several filters are one SUBACK",
    "3.8.4-6": "with a reason for each",
    "3.8.4-7": "the QoS that was granted, or a failure",
    "3.8.4-8": "the lower QoS of publish and subscription",
    "3.9.3-1": "reasons of SUBACK have the order of the filters",
    "3.9.3-2": "and are its own",
    "3.10.1-1": "UNSUBSCRIBE has its flags",
    "3.10.3-1": "filters are strings",
    "3.10.3-2": "at least one",
    "3.10.4-1": "filters are compared letter by letter",
    "3.10.4-2": "nothing new comes after it",
    "3.10.4-3": "what was begun is finished",
    "3.10.4-4": "UNSUBSCRIBE is answered",
    "3.10.4-5": "by its identifier, also where there was nothing",
    "3.10.4-6": "several filters are one UNSUBACK",
    "3.11.3-1": "its reasons have the order of the filters",
    "3.11.3-2": "and are its own",
    "3.12.4-1": "PINGREQ is answered",
    "3.14.0-1": "no DISCONNECT before CONNACK",
    "3.14.1-1": "DISCONNECT has no flags",
    "3.14.2-1": "and one of its reasons",
    "3.14.2-2": "the broker's has no session expiry",
    "3.14.2-3": "a reason in words is left out where it does not fit",
    "3.14.4-1": "nothing is sent after it",
    "3.14.4-2": "and the connection is closed",
    "3.14.4-3": "a client's 0x00 takes its will back",
    "3.15.1-1": "AUTH has no flags",
    "4.1.0-1": "a session is kept while it is connected",
    "4.1.0-2": "and ends once its expiry is over",
    "4.2.0-1": "a transport that loses and reorders nothing",
    "4.3.1-1": "QoS 0 goes once, without DUP",
    "4.3.2-1": "QoS 1: a free identifier",
    "4.3.2-2": "first without DUP",
    "4.3.2-3": "in flight until PUBACK",
    "4.3.2-4": "PUBACK once the broker has it",
    "4.3.2-5": "afterwards the identifier is a new message's",
    "4.3.3-1": "QoS 2: a free identifier",
    "4.3.3-2": "first without DUP",
    "4.3.3-3": "in flight until PUBREC",
    "4.3.3-4": "PUBREC is answered with PUBREL, unless it refuses",
    "4.3.3-5": "in flight until PUBCOMP",
    "4.3.3-6": "no publish again after PUBREL",
    "4.3.3-7": "what was sent does not expire",
    "4.3.3-8": "PUBREC once the broker has it",
    "4.3.3-9": "after a refusal the identifier is a new message's",
    "4.3.3-10": "until PUBREL the same identifier is the same message",
    "4.3.3-11": "PUBREL is answered with PUBCOMP",
    "4.3.3-12": "afterwards the identifier is a new message's",
    "4.3.3-13": "expiry does not break the exchange",
    "4.4.0-1": "sent again at a reconnect only",
    "4.4.0-2": "a refused publish is not sent again",
    "4.5.0-1": "a message goes to every session that matches",
    "4.6.0-5": "order by publisher, topic and QoS",
    "4.6.0-6": "for every topic that is not shared",
    "4.7.0-1": "wildcards are for filters",
    "4.7.1-1": "# is last and alone in its level",
    "4.7.1-2": "+ is alone in its level",
    "4.7.2-1": "a leading wildcard matches no $ topic",
    "4.7.3-1": "at least one character",
    "4.7.3-2": "no U+0000",
    "4.7.3-3": "at most 65,535 bytes",
    "4.7.3-4": "nothing is normalised",
    "4.8.2-1": "$share/ and a group",
    "4.8.2-2": "without wildcards, then a filter",
    "4.8.2-3": "the member's own QoS",
    "4.8.2-4": "QoS 2 that was begun is finished with the same member",
    "4.8.2-5": "and by nobody else if its session ends",
    "4.8.2-6": "a refused message is given to nobody else",
    "4.9.0-1": "the quota begins at the receive maximum",
    "4.9.0-2": "at 0 nothing of QoS 1 or 2 is sent",
    "4.9.0-3": "all else goes on",
    "4.12.0-1": "an unknown authentication method is refused, then close",
    "4.12.0-6": "no AUTH unless the client named a method",
    "4.13.1-1": "malformed packets and protocol errors close",
    "4.13.2-1": "a reason from 0x80 on closes",
    "6.0.0-1": "WebSocket: binary frames",
    "6.0.0-2": "packets lie in frames as they like",
    "6.0.0-3": "the client asks for the subprotocol mqtt",
    "6.0.0-4": "and is told so",
}
"""Of chapters 1 to 4 and 6 those that are about a server; reason strings and user properties of acknowledgements, which are never sent, are left out,
and so is the rest of enhanced authentication, which there is not."""
_NAMED: Final = re.compile(r"\[MQTT-(\d+\.\d+\.\d+-\d+)\]")


def table() -> str:
    """The whole text of docs/mqtt-conformance.md."""
    five, three = _in_tests("mqtt", CLAUSES), _in_tests("mqtt3", CLAUSES_3)
    obeyed = _in_code()
    lines = [
        "# MQTT, clause by clause",
        "",
        "The normative clauses that bind a broker, in our words; for 5.0 where the code names each; the tests that prove them. Generated from",
        "the marks in code and tests (`scripts/mqtt_clauses.py`).",
        "",
        "## MQTT 5.0",
        "",
        _counted(CLAUSES, five),
        "",
        "| clause | | in the code | proved by |",
        "|---|---|---|---|",
    ]
    for clause, text in CLAUSES.items():
        lines.append(f"| {clause} | {text} | {_listed(obeyed.get(clause, []))} | {_listed(five.get(clause, []))} |")
    lines += ["", "Not listed: what is about clients alone; reasons in words and user properties of acknowledgements, which are never sent;"]
    lines += ["enhanced authentication, which there is not, beyond its refusal."]
    lines += ["", "## MQTT 3.1.1", "", "Its numbers are others; the code names those of 5.0.", "", _counted(CLAUSES_3, three), ""]
    lines += ["| clause | | proved by |", "|---|---|---|"]
    for clause, text in CLAUSES_3.items():
        lines.append(f"| {clause} | {text} | {_listed(three.get(clause, []))} |")
    others = "; ".join(f"{clause}, {text}" for clause, text in NOT_A_SERVERS_3.items())
    lines += ["", f"Not listed, as a broker can neither keep nor break them: {others}."]
    return "\n".join(lines) + "\n"


def _listed(names: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _counted(clauses: dict[str, str], proved: dict[str, list[str]]) -> str:
    missing = [clause for clause in clauses if clause not in proved]
    not_yet = f" Not yet: {', '.join(missing)}." if missing else ""
    return f"{len(clauses) - len(missing)} of {len(clauses)} are named by a test.{not_yet}"


def _in_code() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for path in [*sorted((ROOT / "src" / "headrace").glob("*/mqtt/**/*.py")), ROOT / "src/headrace/model/topics.py"]:
        for clause in dict.fromkeys(_NAMED.findall(path.read_text())):
            found.setdefault(clause, []).append(str(path.relative_to(ROOT / "src" / "headrace")))
    return found


def _in_tests(mark: str, clauses: dict[str, str]) -> dict[str, list[str]]:
    """The tests that name each clause in marks of that name."""
    found: dict[str, list[str]] = {}
    for path in sorted((ROOT / "tests").glob("**/test_*.py")):
        text = path.read_text()
        if f"mark.{mark}(" not in text:
            continue
        for node in ast.parse(text).body:
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            for call in node.decorator_list:
                if isinstance(call, ast.Call) and ast.unparse(call.func) == f"pytest.mark.{mark}":
                    for argument in call.args:
                        assert isinstance(argument, ast.Constant), f"{path}: a mark names its clauses as they are"
                        found.setdefault(str(argument.value), []).append(f"{path.stem.removeprefix('test_')}::{node.name.removeprefix('test_')}")
    unknown = sorted(clause for clause in found if clause not in clauses)
    assert not unknown, f"tests name clauses in pytest.mark.{mark} that are not listed: {unknown}"
    return found
