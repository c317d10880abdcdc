"""One real etcd under supervision: restarts of the broker and of etcd, a restored older state, TLS and users."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest
import trustme

from headrace.cluster.coordinator import Changes, Document, Reread, WatchEvent
from headrace.cluster.etcd.calls import Access, auth_pb
from headrace.cluster.etcd.calls import pb as rpc
from headrace.cluster.etcd.client import EtcdCoordinator
from headrace.cluster.etcd.opening import open_client
from headrace.errors import CoordinatorUnavailable, Invalid, Unauthorized
from headrace.model.config import Broker, Config, Coordination, Etcd, EtcdTls
from tests.integration.coordination.etcds import READY_S, Member, binary, copied, here, program

pytestmark = [pytest.mark.timeout(120)]


@pytest.fixture
async def lone(tmp_path: Path) -> AsyncIterator[Member]:
    member = Member("lone", tmp_path)
    try:
        await member.start([member])
        await member.ready()
        yield member
    finally:
        await member.stop()


async def test_from_the_configuration_to_a_document(tmp_path: Path) -> None:
    member = Member("lone", tmp_path)
    await member.start([member])
    voter = member.supervisor
    assert voter is not None
    etcd = Etcd(binary=binary(), tryout=not binary())
    config = Config(broker=Broker(data_dir=str(tmp_path)), coordination=Coordination(mode="coordinated", etcd=etcd))
    try:
        await voter.ready(READY_S)
        client = await open_client(config, [str(member.client)])
        assert await client.transact({"k": 0}, {"k": b"v"})
        (endpoint,) = (await client.status()).endpoints
        assert endpoint.reachable
        assert endpoint.version == ".".join(map(str, program().version))
        assert 0 < endpoint.latency_ms < 5000
        await client.close()
        log = (member.folder / "etcd.log").read_text()
        assert "panic" not in log
        assert os.getsid(voter.pid) == voter.pid
        assert os.readlink(f"/proc/{voter.pid}/fd/2") == str(member.folder / "etcd.log")
    finally:
        await voter.stop()
    assert not (member.folder / "etcd.pid").exists()


async def test_it_is_taken_over_by_the_next_run_of_its_broker(lone: Member) -> None:
    assert lone.supervisor is not None
    pid = lone.supervisor.pid
    await lone.supervisor.leave()
    await lone.start([lone])
    await lone.ready()
    assert lone.supervisor.pid == pid
    assert lone.supervisor.starts == 0
    (lone.folder / "etcd.pid").unlink()
    await lone.supervisor.leave()
    await lone.start([lone])
    await lone.ready()
    assert lone.supervisor.pid == pid, "found by its command line, as after a kill between its start and the record of it"


async def test_it_outlives_a_broker_that_is_killed(tmp_path: Path) -> None:
    member = Member("lone", tmp_path)
    script = f"""
import asyncio, os, signal, sys
from pathlib import Path
sys.path.insert(0, {os.getcwd()!r})
from headrace.model.config import Address
from tests.integration.coordination.etcds import Member
async def main():
    m = Member("lone", Path({str(tmp_path)!r}))
    m.client, m.peer = Address("127.0.0.1", {member.client.port}), Address("127.0.0.1", {member.peer.port})
    await m.start([m]); await m.ready()
    print(m.supervisor.pid, flush=True)
    os.killpg(os.getpgrp(), signal.SIGKILL)
asyncio.run(main())
"""
    broker = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, start_new_session=True, check=False
    )
    assert broker.returncode == -signal.SIGKILL, broker.stderr
    try:
        await member.start([member])
        await member.ready()
        assert member.supervisor is not None
        assert member.supervisor.pid == int(broker.stdout)
    finally:
        await member.stop()


async def test_a_killed_etcd_is_started_again_and_knows_everything(lone: Member) -> None:
    assert lone.supervisor is not None
    client = EtcdCoordinator([str(lone.client)])
    await client.transact({}, {"k": b"v"})
    revision = (await client.range("")).revision
    async with aclosing(client.watch("k", from_revision=revision + 1)) as events:
        waiting = asyncio.ensure_future(anext(events))
        pid = lone.supervisor.pid
        lone.send(signal.SIGKILL)
        async with asyncio.timeout(READY_S):
            while lone.supervisor.pid in (pid, 0):
                await asyncio.sleep(0.02)
        await lone.ready()
        assert await client.get("k") == Document("k", b"v", 1)
        await client.transact({}, {"k": b"w"})
        async with asyncio.timeout(READY_S):
            event = await waiting
        assert isinstance(event, Changes)
        assert event.changes[0].document == Document("k", b"w", 2)
    await client.close()
    assert lone.supervisor.starts == 2
    assert (lone.folder / "etcd.log.1").exists()


async def test_an_older_state_that_was_put_back_is_noticed(lone: Member, tmp_path: Path) -> None:
    data, kept = lone.folder / "data", tmp_path / "kept"
    client = EtcdCoordinator([str(lone.client)])
    await client.transact({}, {"k": b"old"})
    await lone.stop()
    copied(data, kept)
    await lone.start([lone])
    await lone.ready()
    for n in range(20):
        await client.transact({}, {"k": str(n).encode()})
    revision = (await client.range("")).revision
    waiting = [asyncio.ensure_future(everything(client, place)) for place in (revision - 3, revision + 1)]
    await asyncio.sleep(0.3)
    await lone.stop()
    copied(kept, data)
    await lone.start([lone])
    await lone.ready()
    async with asyncio.timeout(READY_S):
        assert (await client.get("k")) == Document("k", b"old", 1)
        for events in await asyncio.gather(*waiting):
            assert events[-1] == Reread("restored")
    assert client.calls.restores == 1
    await client.close()


async def everything(client: EtcdCoordinator, place: int) -> list[WatchEvent]:
    async with aclosing(client.watch("k", from_revision=place)) as events:
        return [event async for event in events]


async def test_other_endpoints_are_used_without_a_gap_and_closing_ends_watches(lone: Member) -> None:
    client = EtcdCoordinator([str(lone.client)])
    registration = await client.register("brokers/a", b"", ttl_ms=2000)
    revision = (await client.range("")).revision
    seen: list[WatchEvent] = []

    async def look() -> None:
        async with aclosing(client.watch("k", from_revision=revision + 1)) as events:
            async for event in events:
                seen.append(event)

    looking = asyncio.ensure_future(look())
    for n, address in enumerate((f"localhost:{lone.client.port}", str(here()), str(lone.client))):
        await client.transact({}, {f"k{n}": b""})
        asking = [asyncio.ensure_future(client.get("k0")) for _ in range(20)]
        await asyncio.sleep(0)
        await client.use([address, str(lone.client)] if n == 1 else [address])
        assert all(await asyncio.gather(*asking))
        await asyncio.sleep(0.1)
    async with asyncio.timeout(READY_S):
        while sum(len(e.changes) for e in seen if isinstance(e, Changes)) < 3:
            await asyncio.sleep(0.05)
    await asyncio.sleep(3)
    assert registration.alive
    assert registration.silent_ms < 2000
    assert not looking.done()
    await client.close()
    async with asyncio.timeout(READY_S):
        await looking
    with pytest.raises(CoordinatorUnavailable, match="closed"):
        await client.get("k0")
    with pytest.raises(CoordinatorUnavailable, match="closed"):
        await client.transact({}, {"k0": b""})
    assert not registration.alive


async def test_without_etcd_the_answer_is_definite_and_in_time() -> None:
    client = EtcdCoordinator([str(here()), str(here())], timeout_s=1.0)
    started = asyncio.get_running_loop().time()
    for question in (client.get("k"), client.transact({}, {"k": b""}), client.register("k", b"", ttl_ms=1000), client.members()):
        with pytest.raises(CoordinatorUnavailable, match="no connection"):
            await question
    assert asyncio.get_running_loop().time() - started < 10
    status = await client.status()
    assert not status.reachable
    assert [bool(e.fault) for e in status.endpoints] == [True, True]
    await client.close()


async def test_a_user_and_a_password_are_asked_for(lone: Member, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headrace.cluster.etcd.calls.FIRST_TRY_S", 0.001)  # the only endpoint has all the time of a question to look at the password
    admin = EtcdCoordinator([str(lone.client)])
    for method, request in (
        ("auth.UserAdd", rpc.AuthUserAddRequest(name="root", password="secret", options=auth_pb.UserAddOptions())),
        ("auth.RoleAdd", rpc.AuthRoleAddRequest(name="root")),
        ("auth.UserGrantRole", rpc.AuthUserGrantRoleRequest(user="root", role="root")),
        ("auth.AuthEnable", rpc.AuthEnableRequest()),
    ):
        await admin.calls.read(method, request, what="for a user")
    await admin.close()
    password = tmp_path / "password"
    password.write_text("secret\n")
    etcd = Etcd(endpoints=(str(lone.client),), user="root", password_file=str(password))
    client = await open_client(Config(coordination=Coordination(etcd=etcd)))
    assert await client.transact({}, {"k": b"v"})
    registration = await client.register("brokers/a", b"", ttl_ms=2000)
    revision = (await client.range("")).revision
    async with aclosing(client.watch("k", from_revision=revision + 1)) as events, asyncio.timeout(READY_S):
        await client.transact({}, {"k": b"w"})
        assert isinstance(await anext(events), Changes)
    client.calls._token = "forgotten.1"  # as after etcd was restarted
    assert await client.get("k") == Document("k", b"w", 2)
    await asyncio.sleep(3)
    assert registration.alive
    await client.close()
    for user, secret in (("root", "wrong"), ("", "")):
        stranger = EtcdCoordinator([str(lone.client)], Access(user=user, password=secret), timeout_s=READY_S)
        with pytest.raises(Unauthorized):
            await stranger.transact({}, {"k": b"x"})
        await stranger.close()


async def test_tls_with_certificates_of_both_sides(tmp_path: Path) -> None:
    ca = trustme.CA()
    server, broker = ca.issue_cert("127.0.0.1", "localhost"), ca.issue_cert("broker.test")
    files = {"ca": tmp_path / "ca.pem", "cert": tmp_path / "cert.pem", "key": tmp_path / "key.pem"}
    ca.cert_pem.write_to_path(str(files["ca"]))
    for name, cert in (("server", server), ("broker", broker)):
        for blob in cert.cert_chain_pems:
            blob.write_to_path(str(tmp_path / f"{name}.pem"))
        cert.private_key_pem.write_to_path(str(tmp_path / f"{name}.key"))
    address, peer = here(), here()
    command = [
        program().path, f"--data-dir={tmp_path / 'data'}", f"--listen-client-urls=https://{address}", f"--advertise-client-urls=https://{address}",
        f"--listen-peer-urls=http://{peer}", f"--initial-advertise-peer-urls=http://{peer}", f"--initial-cluster=default=http://{peer}",
        f"--cert-file={tmp_path / 'server.pem'}", f"--key-file={tmp_path / 'server.key'}", "--client-cert-auth",
        f"--trusted-ca-file={files['ca']}",
    ]  # fmt: skip
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        tls = EtcdTls(ca=str(files["ca"]), cert=str(tmp_path / "broker.pem"), key=str(tmp_path / "broker.key"))
        config = Config(coordination=Coordination(etcd=Etcd(endpoints=(str(address),), tls=tls)))
        client = await open_client(config)
        async with asyncio.timeout(READY_S):
            while True:
                try:
                    await client.transact({}, {"k": b"v"})
                    break
                except CoordinatorUnavailable:
                    await asyncio.sleep(0.1)
        await client.close()
        stranger = EtcdCoordinator([str(address)], timeout_s=1.0)
        with pytest.raises(CoordinatorUnavailable):
            await stranger.transact({}, {"k": b"x"})
        await stranger.close()
        unknown = EtcdCoordinator([str(address)], Access(ca=trustme.CA().cert_pem.bytes()), timeout_s=1.0)
        with pytest.raises(CoordinatorUnavailable):
            await unknown.get("k")
        await unknown.close()
    finally:
        process.kill()
        process.wait(10)
    with pytest.raises(Invalid, match=r"tls\.ca"):
        await open_client(Config(coordination=Coordination(etcd=Etcd(endpoints=("h:1",), tls=EtcdTls(ca=str(tmp_path / "none"))))))
