"""What a configuration declares: from a file, a table or a list, all mistakes at once, and the ports that follow from one address."""

from pathlib import Path
from typing import Any

import pytest

from headrace.cluster.formation.addresses import PORT_MAX, etcd_client, etcd_peer, mistakes
from headrace.cluster.formation.declaring import member_name, read
from headrace.cluster.formation.voting import etcd_name, seat_of
from headrace.config import load
from headrace.config import read as read_config
from headrace.core.formation.parsing import parse
from headrace.model.config import Address, Broker, Cluster, Config
from headrace.model.errors import Invalid

TEXT = 'version = 4\ngospel = "a"\n[members]\na = "voter"\nb = { role = "observer", address = "b.internal:7000" }\n'
TABLE: dict[str, Any] = {"version": 4, "gospel": "a", "members": {"a": "voter", "b": {"role": "observer", "address": "b.internal:7000"}}}


def declared(**cluster: Any) -> Config:
    return Config(cluster=Cluster(**cluster))


def test_a_file_and_a_table_say_the_same(tmp_path: Path) -> None:
    (tmp_path / "cluster.toml").write_text(TEXT)
    of_file, of_table = read(declared(file=str(tmp_path / "cluster.toml"))), read(declared(declared=TABLE))
    assert of_file.config == of_table.config is not None
    assert (of_file.setting, of_table.setting) == ("cluster.file", "cluster.declared")
    assert of_file.source.endswith("cluster.toml")


def test_voters_are_a_config_of_version_one() -> None:
    found = read(declared(voters=("a", "b=10.0.0.2:7000", "c")))
    assert found.config is not None
    assert (found.config.version, found.config.voters) == (1, ("a", "b", "c"))
    assert [m.address for m in found.config.members] == ["a:7582", "10.0.0.2:7000", "c:7582"]
    assert found.warnings == ()
    assert "even" in read(declared(voters=("a", "b"))).warnings[0]


def test_none_is_none() -> None:
    found = read(Config())
    assert (found.config, found.setting, found.mistakes) == (None, "", ())


def test_all_mistakes_at_once_with_where_they_stand(tmp_path: Path) -> None:
    table = {"version": 0, "gospels": "a", "members": {"a": "boss", "b": {"address": "nowhere"}}}
    found = read(declared(declared=table))
    assert found.config is None
    assert len(found.mistakes) >= 4
    assert all(text.startswith("cluster.declared: ") for text in found.mistakes)
    gone = read(declared(file=str(tmp_path / "none.toml")))
    assert "cannot be read" in gone.mistakes[0]
    (tmp_path / "bad.toml").write_bytes(b"\xff\xfe")
    assert "UTF-8" in read(declared(file=str(tmp_path / "bad.toml"))).mistakes[0]
    assert "twice" in read(declared(voters=("a", "a"))).mistakes[0]


@pytest.mark.parametrize("name", ["a b", "-a", "reset", "ä"])
def test_a_name_that_no_member_can_have(name: str) -> None:
    with pytest.raises(Invalid, match=r"broker\.name"):
        member_name(Config(broker=Broker(name=name)))
    assert member_name(Config(broker=Broker(name="a-1.x"))) == "a-1.x"


def test_etcd_s_ports_follow_from_one_address() -> None:
    assert (etcd_client("h:7582"), etcd_peer("h:7582")) == (Address("h", 7584), Address("h", 7585))
    assert etcd_peer("[::1]:10") == Address("::1", 13)


@pytest.mark.parametrize(
    ("one", "other", "role", "wrong"),
    [
        ("h:7000", "h:7003", "voter", 1), ("h:7000", "h:7004", "voter", 0), ("h:7000", "i:7000", "voter", 0), ("h:7000", "h:7001", "observer", 1),
        ("h:7004", "h:7002", "observer", 0), (f"h:{PORT_MAX}", "i:1", "voter", 0), (f"h:{PORT_MAX + 1}", "i:1", "voter", 1),
    ],
)  # fmt: skip
def test_ports_that_one_host_would_have_twice(one: str, other: str, role: str, wrong: int) -> None:
    config = parse({"version": 1, "members": {"a": {"address": one}, "b": {"address": other, "role": role}}}).config
    assert config is not None
    assert len(mistakes(config)) == wrong


def test_members_of_etcd_are_called_by_name_and_seat() -> None:
    assert seat_of(etcd_name("a-1.b", 12)) == ("a-1.b", 12)
    assert seat_of("default") == ("default", 0)
    assert seat_of("x-y") == ("x-y", 0)
    assert seat_of("") == ("", 0)


# ---------------------------------------------------------------- beside other settings


def test_it_is_declared_once_for_a_coordinated_broker_without_seeds(tmp_path: Path) -> None:
    (tmp_path / "h.toml").write_text('[cluster]\nfile = "x"\nvoters = ["a"]\n[membership]\nseeds = ["a:1"]\n')
    wrong = {m.setting for m in read_config(tmp_path / "h.toml", {}).mistakes}
    assert wrong == {"cluster.voters", "cluster.file", "membership.seeds"}


def test_the_table_stands_in_the_broker_s_own_file(tmp_path: Path) -> None:
    (tmp_path / "h.toml").write_text(
        '[coordination]\nmode = "coordinated"\n[cluster.declared]\nversion = 4\ngospel = "a"\n[cluster.declared.members]\na = "voter"\n'
        'b = { role = "observer", address = "b.internal:7000" }\n'
    )
    assert read(load(tmp_path / "h.toml", {}).config).config == read(declared(declared=TABLE)).config


def test_flags_and_environment() -> None:
    config = load(None, {"HEADRACE_CLUSTER__VOTERS": "a,b,c", "HEADRACE_COORDINATION__MODE": "coordinated"}).config
    assert config.cluster.voters == ("a", "b", "c")
