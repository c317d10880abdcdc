"""From the configuration to a client of etcd: which files are read, which addresses are asked."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

from headrace.cluster.etcd.calls import Access
from headrace.cluster.etcd.client import SPACE, EtcdCoordinator
from headrace.model.config import Config
from headrace.model.errors import Invalid


async def open_client(config: Config, voters: Sequence[str] = (), *, space: str = SPACE) -> EtcdCoordinator:
    """A client of the external endpoints if there are any, else of ``voters`` (client addresses, this broker's own first)."""
    etcd = config.coordination.etcd
    return EtcdCoordinator(etcd.endpoints or voters, await asyncio.to_thread(_access, config), space=space)


def _access(config: Config) -> Access:
    etcd = config.coordination.etcd
    return Access(
        ca=_file(etcd.tls.ca, "tls.ca"), cert=_file(etcd.tls.cert, "tls.cert"), key=_file(etcd.tls.key, "tls.key"), user=etcd.user,
        password=_file(etcd.password_file, "password_file").decode().strip(),
    )  # fmt: skip


def _file(path: str, setting: str) -> bytes:
    if not path:
        return b""
    try:
        return Path(path).read_bytes()
    except OSError as e:
        raise Invalid(f"coordination.etcd.{setting}: {path} cannot be read: {e.strerror or e}", hint="correct the path or its permissions") from None
