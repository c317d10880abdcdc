"""What operators want of a formation that runs: a config applied or looked at, a voter more or less, another secret, and who there is.

Owns how a command becomes a config and what is answered; mistakes are told all at once. What is done about a config the formation decides.
"""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Final

from headrace.ambient import ambient
from headrace.cluster.formation.addresses import mistakes as of_ports
from headrace.cluster.formation.opening import Running
from headrace.cluster.membership.interface import Membership
from headrace.cluster.opening import read_secret_lines
from headrace.cluster.rotation import Rotation
from headrace.cluster.secret import Secret
from headrace.core.formation import editing
from headrace.core.formation.effects import Answer, Verdict
from headrace.core.formation.parsing import parse, parse_text
from headrace.model.errors import Conflict, Invalid, Refused
from headrace.model.formation import Declared, digest
from headrace.wire import formation as wire

BUSY_TRIES: Final = 20
BUSY_S: Final = 0.1
"""A record that is just being written is waited for, so that one command does not meet its own trace of a moment ago."""

SEEN_TRIES: Final = 30


class Commands:
    """See the module's head. ``membership``: gossip, while a broker serves; ``admins``: URLs of the brokers' admin HTTP by name, as registered;
    ``drains``: what keeps brokers that are being emptied, "" = nothing."""

    def __init__(
        self, running: Running, membership: Callable[[], Membership | None] = lambda: None, admins: Callable[[], Mapping[str, str]] = dict,
        drains: Callable[[], str] = str,
    ) -> None:  # fmt: skip
        self._running = running
        self._admins = admins
        self._drains = drains
        self._rotation = Rotation(running.secrets, running.transport, membership)
        self._voting = asyncio.Lock()
        """Held while a voter is added or removed: from looking at the present config until the next one is taken on."""

    def status(self) -> dict[str, Any]:
        """As ``Running.status``; ``drain``: what keeps brokers that are being emptied, where the leader is asked."""
        return self._running.status() | {"drain": self._drains()}

    # ------------------------------------------------------------ configs

    async def apply(self, feed: wire.Feed) -> wire.Fed:
        """Feeds the config. What is wrong with it is an answer, not an error; ``Refused`` if none is given and none is configured."""
        config, fed = await self._read(feed)
        if config is None:
            return fed
        answer = await self._feed(config, source=fed.source or "command")
        if answer.verdict is Verdict.BEGUN:
            self._running.driver.corrected()
        return _fed(answer, fed)

    async def plan(self, feed: wire.Feed) -> wire.Planned:
        """What the config would bring; nothing is done."""
        config, fed = await self._read(feed)
        if config is None:
            return wire.Planned(answer=fed)
        outlook = self._running.driver.outlook(config)
        return wire.Planned(
            answer=_fed(outlook.answer, fed),
            steps=tuple(wire.PlannedStep(kind=s.kind, name=s.name, text=s.text, blocked=s.blocked, on=s.on) for s in outlook.steps),
            lost=tuple(
                wire.Lost(cluster_id=g.cluster_id, brokers=g.brokers, data_bytes=g.data_bytes, confirmed=g.confirmed) for g in outlook.given_up
            ),
            emptied=outlook.emptied,
        )  # fmt: skip

    async def _feed(self, config: Declared, *, source: str) -> Answer:
        for _ in range(BUSY_TRIES):
            answer = await self._running.driver.feed(config, source=source)
            if answer.verdict is not Verdict.BUSY or self._running.driver.failed:
                break
            await asyncio.sleep(BUSY_S)
        return answer

    async def _read(self, feed: wire.Feed) -> tuple[Declared | None, wire.Fed]:
        """The config, None = it cannot be used; with what is to be said of it."""
        if feed.text and feed.config is not None:
            raise Invalid("a config is given twice, as text and as a table", hint="give one of the two")
        version = ambient().wall_ns() // 1_000_000_000 if feed.auto_version else 0
        source = ""
        if feed.text or feed.config is not None:
            parsed = parse_text(feed.text, version=version) if feed.text else parse(feed.config, version=version)
            config, warnings = parsed.config, parsed.warnings
            texts = tuple(str(m) for m in (parsed.mistakes if config is None else of_ports(config)))
        else:
            declared = await self._running.reread()
            if not declared.setting:
                raise Refused("no config is given, and this broker's configuration declares none", hint="give a file: headrace cluster apply FILE")
            config, texts, warnings, source = declared.config, declared.mistakes, declared.warnings, declared.source
            if config is not None and version:
                config = parse(editing.as_table(config), version=version).config
        current = self._running.driver.current
        reason = f"{len(texts)} mistake{'s' if len(texts) > 1 else ''}: {'; '.join(texts)}" if texts else ""
        fed = wire.Fed(
            verdict="invalid", version=current.version if current is not None else 0, reason=reason, mistakes=texts, warnings=warnings, source=source
        )
        return None if texts else config, fed

    # ------------------------------------------------------------ voters

    async def add_voter(self, name: str, address: str = "") -> wire.Fed:
        """The next version, in which ``name`` votes. ``Conflict`` while another change is being carried out, or if it votes already."""
        async with self._voting:
            return await self._change(editing.with_voter(await self._settled(), name, address))

    async def remove_voter(self, name: str, *, leave: bool = False) -> wire.Fed:
        """The next version, in which ``name`` is an observer; ``leave``: in which it is not listed. ``Conflict`` while another change is being
        carried out, and if the quorum would be lost."""
        async with self._voting:
            config = await self._settled()
            changed = editing.without(config, name) if leave else editing.without_vote(config, name)
            if why := self._running.driver.keeps(name):
                hint = "start those again, or replace them; headrace cluster status shows who is there"
                raise Conflict(f"{name} cannot be removed now: {why}", hint=hint)
            return await self._change(changed)

    async def _settled(self) -> Declared:
        """The config that is committed and carried out. A step that has just been done is seen at the next look: that is waited for."""
        driver = self._running.driver
        for _ in range(SEEN_TRIES):
            if not driver.plan():
                break
            await asyncio.sleep(BUSY_S)
        config, standing = driver.current, driver.standing
        if config is None or not driver.records.identity or not driver.records.identity.formed:
            raise Refused(f"there is no cluster to change: {standing.reason}", hint="headrace cluster apply FILE declares one")
        if standing.code != "serving":
            raise Conflict(f"this broker cannot change the cluster now: {standing.reason}", hint="ask another one, or wait")
        status = driver.status()
        committed = status["committed"]
        if committed is None or committed["hash"] != digest(config):
            raise Conflict(f"version {config.version} is proposed and not committed yet", hint="wait for it, or apply a younger one")
        if left := driver.plan():
            raise Conflict(
                f"version {config.version} is still being carried out: {left[0]}", hint="one at a time; headrace cluster status shows the steps"
            )
        return config

    async def _change(self, config: Declared) -> wire.Fed:
        texts = tuple(str(m) for m in of_ports(config))
        if texts:
            raise Invalid("; ".join(texts), hint="give another address")
        return _fed(await self._feed(config, source="command"), wire.Fed(verdict="begun", version=config.version, reason=""))

    # ------------------------------------------------------------ who there is

    def members(self) -> wire.Members:
        """Everybody who is declared or was heard, as this broker knows them."""
        driver, status, admins = self._running.driver, self.status(), self._admins()
        config = driver.current
        votes: dict[str, str] = status.get("consensus_members", {})
        committed, leader = status.get("committed"), status.get("leader", "")
        peers: dict[str, dict[str, Any]] = status.get("peers", {})
        found = []
        for name in sorted({driver.name, *peers, *(config.names if config is not None else ())}):
            member = config.member(name) if config is not None else None
            peer = peers.get(name, {})
            if name == driver.name:
                own = committed["version"] if committed else 0
                peer = {key: status.get(key, "") for key in ("state", "reason", "directory", "cluster_id", "incarnation")}
                peer |= {"reachable": True, "since_wall_ms": status.get("since_wall_ms", 0), "applied_version": own}
            found.append(
                wire.MemberInfo(
                    name=name, role=member.role if member is not None else "", vote=votes.get(name, "none") if votes else "",
                    leader=name == leader, address=member.address if member is not None else peer.get("address", ""),
                    reachable=peer.get("reachable", False), since_wall_ms=peer.get("since_wall_ms", 0), state=peer.get("state", ""),
                    reason=peer.get("reason", ""), directory=peer.get("directory", ""), cluster_id=peer.get("cluster_id", ""),
                    incarnation=str(peer.get("incarnation", "")), version=peer.get("applied_version", 0), data_bytes=peer.get("data_bytes", 0),
                    trouble=peer.get("trouble", ""), admin=admins.get(name, ""),
                )
            )  # fmt: skip
        return wire.Members(
            asked=driver.name, cluster_id=status.get("cluster_id", ""), version=config.version if config is not None else 0,
            committed=config is not None and committed is not None and committed["hash"] == digest(config), members=tuple(found),
            toml=editing.as_toml(config) if config is not None else self._proposed(status),
        )  # fmt: skip

    def _proposed(self, status: dict[str, Any]) -> str:
        """Of the brokers that were found while no config is known, "" if they cannot be one cluster."""
        peers: dict[str, dict[str, Any]] = status.get("peers", {})
        found = {name: peer["advertised"] for name, peer in peers.items() if peer["reachable"] and peer.get("advertised")}
        parsed = editing.proposed({**found, self._running.driver.name: status.get("address", "")})
        return editing.as_toml(parsed.config) if parsed.config is not None and not of_ports(parsed.config) else ""

    # ------------------------------------------------------------ secrets

    async def secrets(self) -> wire.Secrets:
        """Which secrets this broker accepts, and which its file has now."""
        lines = await asyncio.to_thread(read_secret_lines, self._running.config.peers.secret_file)
        return wire.Secrets(
            broker=self._running.driver.name, accepted=tuple(self._rotation.ids()), file=tuple(Secret(line).id.hex() for line in lines)
        )

    async def rotate(self, stage: wire.SecretStage) -> wire.Secrets:
        """One stage on this broker, by its secret file as that is now. ``Conflict``: what would be removed is still used, or ``use`` comes before
        ``add``."""
        lines = await asyncio.to_thread(read_secret_lines, self._running.config.peers.secret_file)
        ids = [Secret(line).id.hex() for line in lines]
        if stage.stage == "add":
            for line, id in zip(lines, ids, strict=True):
                if id not in self._rotation.ids():
                    await self._rotation.add(line)
        elif stage.stage == "use":
            if ids[0] != self._rotation.ids()[0]:
                await self._rotation.use(ids[0])
        else:
            for id in self._rotation.ids():
                if id not in ids:
                    await self._rotation.remove(id, force=stage.force)
        return await self.secrets()


def _fed(answer: Answer, said: wire.Fed) -> wire.Fed:
    return wire.Fed(
        verdict=_VERDICTS[answer.verdict], version=answer.version, reason=answer.reason, warnings=said.warnings, source=said.source,
        mistakes=(answer.reason,) if answer.verdict is Verdict.INVALID else (),
    )  # fmt: skip


_VERDICTS: Final[dict[Verdict, wire.Verdict]] = {
    Verdict.BEGUN: "begun",
    Verdict.ALREADY: "already applied",
    Verdict.OLDER: "older",
    Verdict.CONFLICT: "conflict",
    Verdict.INVALID: "invalid",
    Verdict.BUSY: "busy",
}
