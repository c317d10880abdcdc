"""From a configuration to a formation that runs, and every reason why it cannot be opened, in words."""

import asyncio
import socket
from pathlib import Path
from typing import Any

import msgspec
import pytest

from headrace.cluster.formation.opening import open_formation
from headrace.model.config import Broker, Cluster, Config, Coordination, Listen, Peers
from headrace.model.errors import DataDirLocked, HeadraceError, Invalid, StorageError, Unavailable
from headrace.storage.files import OsFiles


def config(folder: Path, **sections: Any) -> Config:
    secret = folder / "secret"
    secret.write_text("a secret of sixteen bytes or more")
    secret.chmod(0o600)
    made = Config(
        broker=Broker(name="a", data_dir=str(folder / "data")), listen=Listen(peer="127.0.0.1:0"), peers=Peers(secret_file=str(secret)),
        coordination=Coordination(mode="coordinated"),
    )  # fmt: skip
    return msgspec.structs.replace(made, **sections)


async def test_it_waits_for_a_config_and_is_the_same_directory_again(tmp_path: Path) -> None:
    running = await open_formation(config(tmp_path), OsFiles())
    async with asyncio.timeout(10):
        await running.driver.until(lambda s: s.code == "no_config")
    before = running.status()
    assert before["configured"] is None
    assert running.transport.me.broker == before["node_id"]
    with pytest.raises(DataDirLocked):
        await open_formation(config(tmp_path), OsFiles())
    await running.stop()
    again = await open_formation(config(tmp_path), OsFiles())
    try:
        assert again.transport.me.broker == before["node_id"]
        assert again.status()["incarnation"] == before["incarnation"]
    finally:
        await again.stop()


async def test_a_mistake_in_the_declared_config_is_shown_and_ends_nothing(tmp_path: Path) -> None:
    running = await open_formation(config(tmp_path, cluster=Cluster(voters=("a", "a", "-"))), OsFiles())
    try:
        async with asyncio.timeout(10):
            await running.driver.until(lambda s: s.code == "broken_config")
        status = running.status()
        assert len(status["configured"]["mistakes"]) == 2
        assert status["configured"]["from"] == "cluster.voters"
        assert not status["ready"]
    finally:
        await running.stop()


async def test_a_damaged_record_is_shown_and_nothing_is_begun_over_it(tmp_path: Path) -> None:
    running = await open_formation(config(tmp_path), OsFiles())
    async with asyncio.timeout(10):
        await running.driver.until(lambda s: s.code == "no_config")
    await running.stop()
    identity = tmp_path / "data/formation/data/identity"
    identity.write_bytes(identity.read_bytes()[:-1])
    again = await open_formation(config(tmp_path), OsFiles())
    try:
        status = again.status()
        assert (status["state"], status["code"]) == ("halted", "damaged")
        assert "formation/data/identity" in status["reason"]
    finally:
        await again.stop()


def _taken(folder: Path) -> tuple[Config, socket.socket]:
    held = socket.socket()
    held.bind(("127.0.0.1", 0))
    held.listen()
    return config(folder, listen=Listen(peer=f"127.0.0.1:{held.getsockname()[1]}")), held


async def test_reasons_that_end_a_broker(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    taken, held = _taken(tmp_path)
    with held:
        for wrong, error, text in (
            (taken, Unavailable, "listen.peer"),
            (config(tmp_path, broker=Broker(name="a", data_dir=str(tmp_path / "file" / "data"))), StorageError, "data directory"),
            (config(tmp_path, broker=Broker(name="-", data_dir=str(tmp_path / "data"))), Invalid, "broker.name"),
            (config(tmp_path, broker=Broker(name="a", storage="memory")), Invalid, "disk"),
            (config(tmp_path, peers=Peers()), Invalid, "secret"),
            (config(tmp_path, peers=Peers(secret_file=str(tmp_path / "none"))), Invalid, "secret"),
        ):
            with pytest.raises(error) as raised:
                await open_formation(wrong, OsFiles())
            assert text in str(raised.value)
            assert isinstance(raised.value, HeadraceError)
            assert raised.value.hint
    running = await open_formation(config(tmp_path), OsFiles())  # nothing of all that keeps the directory locked
    await running.stop()
