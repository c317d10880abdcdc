"""Which brokers are alive, dead, or in doubt, and whether the picture can be believed at all.

Owns the rules of evidence (ARCHITECTURE, coordination). Knows no partition. Gossip and silence suggest, they prove nothing by themselves; nothing
here compares clocks of two machines.

A broker is dead when (L1) gossip says dead and the controller's own probe failed; or (L2) its registration has been gone for ``registration_grace``,
or is gone and the broker said goodbye; or, at once, (L3) the controller saw its connection reset, two probes at least 50 ms apart were refused
since, and no other broker got a frame of that life within the last 200 ms. It is in doubt while anything speaks against it that proves nothing.

Freeze: when more than a third of the registrations, at least two, vanished within ``freeze_window`` of each other while their brokers are seen
alive, it is the coordinator that fails, and nothing is moved. Nor is anything moved by a broker to which more than half of the others, at least two,
are dead by silence alone while they keep their registrations: it is itself that is cut off.
"""

from collections.abc import Iterable, Mapping
from typing import Literal

import msgspec

from headrace.core.control.picture import Picture, Seen
from headrace.model.cluster import BrokerId, Placement, Registered

REFUSED_APART_MS = 50
SILENCE_MS = 200

State = Literal["alive", "doubted", "dead"]


class Verdict(msgspec.Struct, frozen=True):
    """What is held of one broker. ``until_ms``: when time alone may change it."""

    state: State
    reason: str
    until_ms: int | None = None


class Broker(msgspec.Struct, frozen=True, kw_only=True):
    """A broker as the planner sees it."""

    seen: Seen
    state: State
    reason: str
    settled: bool
    """Not back so recently that it is given nothing."""
    lost: bool
    """Gone for so long that its copies are made elsewhere."""
    at_home_ms: int
    """How long it has been here."""
    steady: bool
    """Nothing has spoken against it for so long that owners may go back to it."""

    @property
    def id(self) -> BrokerId:
        return self.seen.id

    @property
    def name(self) -> str:
        return self.seen.registered.name

    @property
    def alive(self) -> bool:
        return self.state == "alive"

    @property
    def draining(self) -> bool:
        return self.seen.registered.draining


def verdict(seen: Seen, settings: Placement, now_ms: int) -> Verdict:
    """The judgement on one broker; see the module's head."""
    gone_ms = now_ms - seen.since_ms
    if not seen.present:
        if seen.swim == "left":
            return Verdict("dead", "it said goodbye and its registration is gone")
        if gone_ms >= settings.registration_grace_ms:
            return Verdict("dead", f"its registration has been gone for {gone_ms} ms")
    if seen.swim == "dead" and seen.probe_failed:
        return Verdict("dead", "gossip says dead and the controller's own probe failed")
    quiet_at_ms = 0 if seen.frame_ms is None else seen.frame_ms + SILENCE_MS
    if _refused(seen):
        if now_ms >= quiet_at_ms:
            return Verdict("dead", f"its connection was reset, two probes were refused, and nobody got a frame of it in the last {SILENCE_MS} ms")
        return Verdict("doubted", "its connections are refused, but another broker got a frame of it just now", quiet_at_ms)
    if not seen.present:
        return Verdict("doubted", f"its registration has been gone for {gone_ms} ms", seen.since_ms + settings.registration_grace_ms)
    if seen.swim in ("dead", "suspect", "left"):
        return Verdict("doubted", f"gossip says {seen.swim}")
    if seen.probe_failed or seen.reset_ms is not None:
        return Verdict("doubted", "the controller's own connection to it failed")
    return Verdict("alive", "it is registered and nothing speaks against it")


def _refused(seen: Seen) -> bool:
    if seen.reset_ms is None:
        return False
    refused = [at for at in seen.refused_ms if at >= seen.reset_ms]
    return len(refused) >= 2 and refused[-1] - refused[0] >= REFUSED_APART_MS


def judged(picture: Picture) -> tuple[dict[BrokerId, Broker], list[int]]:
    """Every broker of the picture and of its assignments (ascending by id), and the moments at which time alone changes what is held of them."""
    settings, now_ms = picture.settings, picture.now_ms
    everyone = {seen.id: seen for seen in picture.brokers}
    for stored in picture.stored:
        for broker in stored.assignment.copies:
            if broker not in everyone:
                nobody = Registered(id=broker, name=broker, incarnation=stored.assignment.incarnation)
                everyone[broker] = Seen(registered=nobody, present=False, since_ms=picture.began_ms)
    brokers: dict[BrokerId, Broker] = {}
    moments: list[int] = []
    for id in sorted(everyone):
        seen = everyone[id]
        judgement = verdict(seen, settings, now_ms)
        passed_ms = now_ms - seen.since_ms
        settled = not (seen.present and seen.returned and passed_ms < settings.returning_wait_ms)
        lost = judgement.state == "dead" and not seen.present and passed_ms >= settings.replace_after_ms
        steady_ms = 0 if seen.doubted_ms is None else seen.doubted_ms + settings.returning_wait_ms
        brokers[id] = Broker(
            seen=seen, state=judgement.state, reason=judgement.reason, settled=settled, lost=lost, at_home_ms=passed_ms if seen.present else 0,
            steady=judgement.state == "alive" and now_ms >= steady_ms,
        )  # fmt: skip
        moments.append(steady_ms)
        if judgement.until_ms is not None:
            moments.append(judgement.until_ms)
        waits = (settings.returning_wait_ms, settings.preferred_after_ms) if seen.present and seen.returned else ()
        waits = waits if seen.present else (settings.registration_grace_ms, settings.replace_after_ms)
        moments.extend(seen.since_ms + wait for wait in waits)
    return brokers, sorted({moment for moment in moments if moment > now_ms})


def frozen(picture: Picture) -> str:
    """Why nothing may be planned, "" if it may."""
    alone = secluded(picture.brokers)
    if alone:
        return f"planning is frozen: {alone}"
    vanished = sorted(
        (seen.since_ms, seen.registered.name) for seen in picture.brokers if not seen.present and seen.swim == "alive" and not seen.probe_failed
    )
    present = sum(1 for seen in picture.brokers if seen.present)
    window_ms = picture.settings.freeze_window_ms
    first = 0
    best: tuple[int, list[str]] = (0, [])
    for end in range(len(vanished)):
        while vanished[end][0] - vanished[first][0] > window_ms:
            first += 1
        if end + 1 - first > best[0]:
            best = (end + 1 - first, [name for _, name in vanished[first : end + 1]])
    count, names = best
    if count >= 2 and 3 * count > present + count:
        return (
            f"planning is frozen: the registrations of {', '.join(sorted(names))} ({count} of {present + count}) vanished within {window_ms} ms "
            "although gossip and probes see them alive; look at the coordinator"
        )
    return ""


def secluded(brokers: Iterable[Seen]) -> str:
    """Why whoever sees ``brokers`` so is itself cut off from most of them, "" if it is not."""
    present = [seen for seen in brokers if seen.present]
    silent = sorted(seen.registered.name for seen in present if seen.swim == "dead" and not _refused(seen))
    if len(silent) >= 2 and 2 * len(silent) > len(present) - 1:
        return (
            f"gossip hears nothing of {', '.join(silent)} ({len(silent)} of {len(present) - 1} others), who keep their registrations: "
            "this broker is cut off from them, so it does not judge them"
        )
    return ""


def names_of(brokers: Mapping[BrokerId, Broker], ids: tuple[BrokerId, ...] | list[BrokerId]) -> str:
    """Names for a sentence."""
    return ", ".join(brokers[b].name if b in brokers else b for b in ids) or "nobody"
