"""What a config would bring, before anybody wants it: which answer it would get, the steps, whose data would be given up, who would be emptied.

Owns the description; the rules are ``judging``'s and ``planning``'s. Pure, and changes nothing.
"""

import msgspec

from headrace.core.formation.books import Books
from headrace.core.formation.effects import Answer, Verdict
from headrace.core.formation.judging import HOLDING, judge
from headrace.core.formation.judging import Verdict as Judged
from headrace.core.formation.planning import Step
from headrace.model.formation import Declared


class Planned(msgspec.Struct, frozen=True, kw_only=True):
    """One step. ``blocked`` says what it waits for now and ``on`` on whom, "" = it can be done at once."""

    kind: str
    name: str
    text: str
    blocked: str = ""
    on: tuple[str, ...] = ()


class GivenUp(msgspec.Struct, frozen=True, kw_only=True):
    """The data of one cluster, which would be set aside on these brokers. ``data_bytes`` as far as they have said."""

    cluster_id: str
    brokers: tuple[str, ...]
    data_bytes: int
    confirmed: bool
    """The config says that it may be: without that it is refused."""


class Outlook(msgspec.Struct, frozen=True, kw_only=True):
    """``answer``: what feeding it would be answered now."""

    answer: Answer
    steps: tuple[Planned, ...] = ()
    given_up: tuple[GivenUp, ...] = ()
    emptied: tuple[str, ...] = ()
    """Brokers that would hand over all that they own and copy, and then be removed."""


def outlook(config: Declared, books: Books, answer: Answer, steps: tuple[Step, ...]) -> Outlook:
    """``steps``: from the present cluster to ``config``; () if there is none yet."""
    if answer.verdict in (Verdict.OLDER, Verdict.CONFLICT):
        return Outlook(answer=answer)
    charter = books.charter
    if charter is None and books.condition == "fresh":
        return Outlook(answer=answer, steps=_forming(config, books), given_up=_given_up(config, books))
    leaving: tuple[str, ...] = ()
    if charter is not None and config.undeclared == "closed":
        leaving = tuple(e.name for e in charter.roster if config.member(e.name) is None)
    planned = tuple(Planned(kind=s.kind, name=s.name, text=str(s).partition(":")[0], blocked=s.blocked, on=s.on) for s in steps)
    return Outlook(answer=answer, steps=planned, given_up=_given_up(config, books), emptied=leaving)


def _forming(config: Declared, books: Books) -> tuple[Planned, ...]:
    """A fresh broker's part in it: a new cluster, or to be taken in by the one that some of the members have."""
    names = ", ".join(config.names)
    if serving := books.holding(config.names):
        reason = "" if any((h := books.hello(n)) is not None and h.serving for n in serving) else "it has no quorum that is known here"
        where = ", ".join(sorted({h.cluster_id for n in serving if (h := books.hello(n)) is not None}))
        return (Planned(kind="join", name=books.name, text=f"join cluster {where}", blocked=reason, on=serving if reason else ()),)
    missing = tuple(n for n in config.required if n != books.name and books.hello(n) is None)
    blocked = f"{', '.join(missing)} not reachable" if missing else ""
    return (Planned(kind="form", name=config.seed, text=f"form a cluster of {names}", blocked=blocked, on=missing),)


def _given_up(config: Declared, books: Books) -> tuple[GivenUp, ...]:
    found: dict[str, list[tuple[str, int]]] = {}
    mine = books.cluster_id if books.condition in ("formed", "standalone") else ""
    ends = False
    if mine:
        judged = judge(config, books.here(), books.peers.known, books.hello)
        ends = judged.verdict in (Judged.END, Judged.ELSEWHERE) or (judged.verdict is Judged.REFUSE and judged.code == "would_lose_data")
        if ends:
            found[mine] = [(books.name, books.data_bytes)]
    for name in books.peers.names():
        hello = books.peers.known(name)
        if hello is None or hello.condition not in HOLDING:
            continue
        if hello.cluster_id == mine:
            if ends:
                found[mine].append((name, hello.data_bytes))
        elif config.member(name) is not None and config.gospel and not _survives(config, books, hello.cluster_id):
            found.setdefault(hello.cluster_id, []).append((name, hello.data_bytes))
    return tuple(
        GivenUp(
            cluster_id=id, brokers=tuple(sorted(n for n, _ in those)), data_bytes=sum(b for _, b in those), confirmed=config.confirms(id)
        )
        for id, those in sorted(found.items())
    )  # fmt: skip


def _survives(config: Declared, books: Books, cluster_id: str) -> bool:
    gospel = books.peers.known(config.gospel)
    return gospel is not None and gospel.condition in HOLDING and gospel.cluster_id == cluster_id
