"""From the configuration to a formation that runs: records, transport, post, consensus and the driver, opened and closed in order.

Owns which setting becomes what, and under which id this broker is known to its peers: that of its directory. No lone broker imports anything here.
"""

import asyncio
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from headrace import __version__
from headrace.ambient import ambient
from headrace.cluster.etcd.client import EtcdCoordinator
from headrace.cluster.etcd.opening import open_client
from headrace.cluster.formation import declaring
from headrace.cluster.formation.addresses import gossip, settled
from headrace.cluster.formation.driver import Around, Driver
from headrace.cluster.formation.external import External
from headrace.cluster.formation.place import Place
from headrace.cluster.formation.post import Post
from headrace.cluster.formation.seeking import seek
from headrace.cluster.formation.slots import Disk, Slots
from headrace.cluster.formation.voting import Voting
from headrace.cluster.opening import make_transport, read_secrets
from headrace.cluster.secret import Secrets
from headrace.cluster.transport import Me, Transport
from headrace.core.formation.books import Found
from headrace.core.formation.records import Directory, Identity, Records
from headrace.log import get_logger
from headrace.model.cluster import BrokerId, Incarnation
from headrace.model.config import Config, advertised, parse_address
from headrace.model.errors import Invalid, StorageError, Unavailable
from headrace.model.formation import DeclaredMember

_log = get_logger("formation")
ETCD = "etcd"


class Running:
    """A formation that runs."""

    def __init__(
        self, config: Config, driver: Driver, transport: Transport, post: Post, slots: Slots, secrets: Secrets, declared: declaring.Declaring,
        seeking: asyncio.Task[None] | None = None,
    ) -> None:  # fmt: skip
        self.config = config
        """With its own addresses as they were declared."""
        self.driver = driver
        self.transport = transport
        """It takes visits; other brokers are let in by whoever serves."""
        self.secrets = secrets
        self._post = post
        self._slots = slots
        self._declared = declared
        self._seeking = seeking

    @property
    def cluster(self) -> str:
        """Id of the cluster that this broker is a member of, "" = none yet, or not any more."""
        identity = self.driver.records.identity
        return _cluster(identity) if identity is not None else ""

    def members(self) -> tuple[DeclaredMember, ...]:
        """Those that are known now: of what the cluster has committed, else of what is declared."""
        return tuple(m for c in declaring.known(self.driver.records)[:1] for m in c.members)

    def seeds(self) -> tuple[str, ...]:
        """Where gossip finds them."""
        found = [gossip(m.address) for m in self.members()]
        return tuple(dict.fromkeys(str(address) for address in found))

    def status(self) -> dict[str, Any]:
        """As ``Driver.status``, with what this broker's own configuration declares."""
        declared = self._declared
        configured = {"from": declared.source, "mistakes": list(declared.mistakes), "warnings": list(declared.warnings)}
        return self.driver.status() | {"configured": configured if declared.setting else None}

    async def reread(self) -> declaring.Declaring:
        """What this broker's own configuration declares now; nothing is done about it."""
        self._declared = await asyncio.to_thread(declaring.read, self.config)
        if not self._declared.mistakes:
            self.driver.corrected()
        return self._declared

    async def stop(self) -> None:
        """Everything, the consensus member too; the data directory is free then."""
        if self._seeking is not None:
            self._seeking.cancel()
            with suppress(asyncio.CancelledError):
                await self._seeking
        await self.driver.stop()
        await self._post.stop()
        await self.transport.stop()
        self._slots.close()


async def open_formation(
    config: Config, disk: Disk, around: Around | None = None, *, lone: Callable[[Config], str] = lambda config: ""
) -> Running:
    """Starts it in the running loop; returns at once, whatever it has to wait for. ``Invalid``, ``DataDirLocked`` and ``StorageError`` end a broker;
    a mistake in the declared config does not: it is the reason of what ``status`` shows. ``lone``: id of the lone broker whose data are in the
    directory, "" = of none; asked in a thread."""
    name = declaring.member_name(config)
    if config.broker.storage != "disk":
        raise Invalid("a broker of a cluster keeps its data on disk", hint='set broker.storage = "disk"')
    declared = await asyncio.to_thread(declaring.read, config)
    for text in declared.warnings:
        _log.warning("%s: %s", declared.source, text)
    secrets = await asyncio.to_thread(read_secrets, config.peers.secret_file)
    folder = await asyncio.to_thread(_etcd_folder, config)
    slots = Slots(disk, config.broker.data_dir, elsewhere=(str(folder),))
    try:
        await asyncio.to_thread(slots.open)
    except OSError as e:
        raise StorageError(
            f"the data directory {slots.root} cannot be used: {e.strerror or e}", hint="correct broker.data_dir, or its owner"
        ) from None
    try:
        records, damaged = await asyncio.to_thread(slots.read)
        data = await asyncio.to_thread(slots.data)
        if data and records.identity is None and not damaged and records.aside is None:
            drawn = Identity(
                node_id="", incarnation=Directory(ambient().token(16)), cluster_id=ambient().token(16), formed=True, standalone=True
            )
            records = await asyncio.to_thread(_take_over, config, name, declared, slots, records, data, lone, drawn)
        known = [*([declared.config] if declared.config is not None else []), *declaring.known(records)]
        config = settled(config, next((m.address for c in known if (m := c.member(name)) is not None), ""))
        return await _open(config, name, declared, secrets, slots, folder, records, damaged, bool(data), around or Around())
    except BaseException:
        slots.close()
        raise


async def _open(
    config: Config, name: str, declared: declaring.Declaring, secrets: Secrets, slots: Slots, folder: Path, records: Records, damaged: str,
    has_data: bool, around: Around,
) -> Running:  # fmt: skip
    identity = records.identity
    me = Me(
        broker=BrokerId(identity.node_id if identity is not None else ambient().token(16)),
        incarnation=Incarnation(ambient().token(8)),
        cluster=_cluster(identity) if identity is not None else "",
        release=__version__,
    )
    transport = make_transport(config, me, secrets)
    transport.close_to_peers()
    listen = parse_address(config.listen.peer)
    try:
        await transport.start(listen)
    except OSError as e:
        raise Unavailable(
            f"listen.peer = {listen} cannot be used: {e.strerror or e}", hint="stop what listens there, or choose another one"
        ) from None
    try:
        own = str(advertised(config.listen.peer, config.listen.peer_advertise, port=transport.port, hostname=socket.gethostname()))

        def address() -> str:
            """As it was declared to those who know this broker's member: a config that is only proposed moves nothing."""
            return next((m.address for c in declaring.known(driver.records) if (m := c.member(name)) is not None), own)

        def identified(identity: Identity) -> None:
            cluster = _cluster(identity)
            if identity.node_id != transport.me.broker or transport.me.cluster not in ("", cluster):
                transport.become(BrokerId(identity.node_id))
            if cluster:
                transport.join_cluster(cluster)

        async def client(space: str) -> EtcdCoordinator:
            return await open_client(config, space=space)

        place: Place
        if config.coordination.etcd.endpoints:
            place = External(name, folder, client, ttl_ms=config.coordination.registration_ttl_ms)
        else:
            place = Voting(name, folder, config.coordination, address, listen_host=listen.host)
        found = Found(
            name=name, address=own, records=records, has_data=has_data, damaged=damaged, consensus_seat=await asyncio.to_thread(place.found),
            coordinated=True, configured=declared.config, mistakes=declared.mistakes, entropy=bytes.fromhex(ambient().token(32)),
        )  # fmt: skip
        driver = Driver(found, slots, place, around, identified=identified)
        post = Post(name, transport, driver.heard, driver.peer_lost)
        driver.begin(post.send, post.troubles)
        seeds = config.cluster.seeds
        seeking = asyncio.get_running_loop().create_task(seek(seeds, driver, post), name="formation: seeds") if seeds else None
    except BaseException:
        await transport.stop()
        raise
    return Running(config, driver, transport, post, slots, secrets, declared, seeking)


def _take_over(
    config: Config, name: str, declared: declaring.Declaring, slots: Slots, records: Records, data: Sequence[str], lone: Callable[[Config], str],
    drawn: Identity,
) -> Records:  # fmt: skip
    """Data without an identity are a lone broker's, to be kept, if the declared config says so: it names this member as the gospel. ``drawn``: the
    identity they get, but for the id."""
    id = lone(config)
    if not id:
        _log.error("there is data without an identity: %s", ", ".join(data))
        return records
    if declared.config is None or declared.config.gospel != name or name not in declared.config.voters:
        _log.error("the data are those of a broker that was alone; to keep them in a cluster, declare this member as a voter and as the gospel")
        return records
    identity = replace(drawn, node_id=id)
    slots.write(identity)
    _log.info("the data of broker %s, which was alone, become those of the first member of a cluster", id)
    return records.stored(identity)


def _cluster(identity: Identity) -> str:
    """The cluster whose broker it is."""
    return identity.cluster_id if identity.formed and not identity.removed_version else ""


def _etcd_folder(config: Config) -> Path:
    return Path(config.coordination.etcd.data_dir or Path(config.broker.data_dir) / ETCD).absolute()
