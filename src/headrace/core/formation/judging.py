"""Whose data survives when a config meets a cluster, or a cluster meets another.

Owns the rules of the gospel, of resets and of what must be confirmed. Pure functions on what is known; they decide nothing about time and act on
nothing. What is not known is waited for; what would lose data that nobody confirmed is refused.
"""

from collections.abc import Callable
from enum import Enum
from typing import Literal

import msgspec

from headrace.core.formation.messages import Hello
from headrace.core.formation.records import Charter, Directory
from headrace.model.formation import RESET, Comparison, Declared, compare, mark

HOLDING = ("accepted", "formed", "standalone")


class Here(msgspec.Struct, frozen=True, kw_only=True):
    """The cluster that judges: a formed one, or a standalone broker, which is a cluster of one."""

    name: str
    cluster_id: str
    incarnation: Directory
    charter: Charter | None
    """None = standalone."""

    def enrols(self, name: str) -> Directory | None:
        if self.charter is None:
            return self.incarnation if name == self.name else None
        enrolled = self.charter.enrolled(name)
        return enrolled.incarnation if enrolled is not None else None


class Verdict(Enum):
    """What a cluster does about a younger config."""

    COMMIT = "commit"
    END = "end"
    """Commit it as the last: the data is given up, as was confirmed."""
    ELSEWHERE = "elsewhere"
    """Another cluster's data survives: it has to commit the config."""
    WAIT = "wait"
    REFUSE = "refuse"


class Judgement(msgspec.Struct, frozen=True):
    """``on``: whom it depends on."""

    verdict: Verdict
    code: str = ""
    reason: str = ""
    on: tuple[str, ...] = ()


Known = Callable[[str], Hello | None]


def judge(config: Declared, here: Here, known: Known, reachable: Known, *, witness: str = "") -> Judgement:
    """What the cluster ``here`` does about ``config``, which is younger than what it has committed; ``witness`` as in ``Held``.

    ``known``: how a peer stood when it was last heard; ``reachable``: how it stands, if it is there now."""
    judgement = _gospel(config, here, known, reachable, witness)
    if judgement.verdict is not Verdict.COMMIT:
        return judgement
    if here.charter is None:
        if here.name not in config.voters:
            return _refuse("not_a_voter", f"{here.name} is standalone: to keep its data in a cluster it must be a voter of it", here.name)
        if config.gospel != here.name:
            return _refuse("no_gospel", f"{here.name} is standalone and holds data: name it as the gospel to keep them", here.name)
    elif not any(e.seat and e.name in config.voters for e in here.charter.roster):
        return _refuse("no_voter_stays", "none of the present voters is a voter in it: change them step by step")
    return judgement


def _refuse(code: str, reason: str, *on: str) -> Judgement:
    return Judgement(Verdict.REFUSE, code, reason, on)


def _gospel(config: Declared, here: Here, known: Known, reachable: Known, witness: str) -> Judgement:
    gospel = config.gospel
    if gospel == RESET:
        before = here.charter.config.gospel if here.charter is not None else ""
        if before != RESET or config.reset_policy == "always":
            return _end(config, here, known, "it resets the cluster")
        return Judgement(Verdict.COMMIT)
    if not gospel:
        others = [n for n in config.names if (h := known(n)) is not None and _elsewhere(h, here)]
        if others:
            return _refuse("no_gospel", f"{', '.join(others)} hold data of another cluster and no gospel says whose data survives", *others)
        return Judgement(Verdict.COMMIT)
    incarnation, hello = here.enrols(gospel), known(gospel)
    if witness and incarnation != witness:
        return _end(config, here, known, f"the data of {gospel} shall survive, and it held none")
    if gospel == here.name:
        return Judgement(Verdict.COMMIT)
    if hello is not None and hello.condition == "removed" and hello.cluster_id != here.cluster_id:
        return _refuse("gospel_removed", f"{gospel} was removed from cluster {hello.cluster_id} and stands for no data: name a member", gospel)
    if hello is None or (reachable(gospel) is None and not _elsewhere(hello, here)):
        if incarnation is not None:
            return Judgement(Verdict.COMMIT)
        return Judgement(Verdict.WAIT, "gospel_unknown", f"nothing is known of {gospel}, whose data shall survive", (gospel,))
    if _elsewhere(hello, here):
        if incarnation is not None and here.charter is not None and hello.cluster_id in here.charter.supersedes:
            return Judgement(Verdict.COMMIT)
        return Judgement(Verdict.ELSEWHERE, "gospel_elsewhere", f"the data of {gospel}, in cluster {hello.cluster_id}, shall survive", (gospel,))
    if hello.condition == "fresh" and hello.incarnation != incarnation:
        if incarnation is None or (hello.version, hello.hash) == mark(config):
            return _end(config, here, known, f"the data of {gospel} shall survive, and it holds none")
    return Judgement(Verdict.COMMIT)


def _elsewhere(hello: Hello, here: Here) -> bool:
    return hello.condition in HOLDING and hello.cluster_id != here.cluster_id


def _end(config: Declared, here: Here, known: Known, why: str) -> Judgement:
    hellos = [h for n in config.names if (h := known(n)) is not None and _elsewhere(h, here)]
    at_stake = [here.cluster_id, *sorted({h.cluster_id for h in hellos})]
    unconfirmed = [c for c in at_stake if not config.confirms(c)]
    if unconfirmed:
        wanted = ", ".join(repr(c) for c in unconfirmed)
        return _refuse("would_lose_data", f"{why}; confirm_discard does not name {wanted}", *([config.gospel] if config.gospel != RESET else []))
    return Judgement(Verdict.END, "confirmed", why)


Meeting = Literal["ignore", "discard", "refuse"]


def meet(other: Charter, here: Here, *, serving: bool) -> tuple[Meeting, str, str]:
    """What a member of ``here`` does about the charter of another cluster; with code and reason."""
    config = other.config
    if other.reset or other.cluster_id == here.cluster_id:
        return "ignore", "", ""
    if here.cluster_id in other.supersedes:
        if serving:
            return "refuse", "superseded", f"cluster {other.cluster_id} was recovered from what was left of this one, which serves"
        return "discard", "superseded", f"cluster {other.cluster_id} was recovered from what was left of {here.cluster_id}"
    if config.member(here.name) is None or (here.charter is not None and other.cluster_id in here.charter.supersedes):
        return "ignore", "", ""
    if here.charter is not None:
        compared = compare(mark(config), mark(here.charter.config))
        if compared in (Comparison.OLDER, Comparison.CONFLICT):
            return "ignore", "", ""
        if compared is Comparison.SAME and here.enrols(config.gospel) is not None:
            return "ignore", "", ""
    left_out = config.gospel == RESET or other.enrolled(config.gospel) is not None
    if not left_out:
        return "refuse", "no_gospel", f"cluster {other.cluster_id} wants this broker, and its config names no gospel of its own"
    if not config.confirms(here.cluster_id):
        return "refuse", "would_lose_data", f"to join cluster {other.cluster_id} the data of {here.cluster_id} must be set aside: confirm_discard"
    return "discard", "confirmed", f"the config of cluster {other.cluster_id} leaves the data of {here.cluster_id} out and confirms it"
