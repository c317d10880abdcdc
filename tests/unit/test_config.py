"""The configuration: precedence, origins, units, every mistake at once, and its generated reference."""

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.config import as_toml, bytes_text, duration_text, load, parse_bytes, parse_duration_ms, read, reference
from headrace.model.config import Config, advertised, glob_matches, parse_address
from headrace.model.errors import Invalid
from headrace.model.relations import contradictions
from headrace.model.specs import QueueSpec, StreamSpec

ROOT = Path(__file__).parents[2]


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "headrace.toml"
    path.write_text(text)
    return path


def test_nothing_given_is_the_defaults() -> None:
    loaded = load(None, {}, {})
    assert loaded.config == Config()
    assert set(loaded.origins.values()) == {"default"}


def test_flags_override_the_environment_which_overrides_the_file(tmp_path: Path) -> None:
    file = write(tmp_path, '[listen]\nnative = "127.0.0.1:1"\nadmin = "127.0.0.1:2"\n[connection]\nheartbeat_ms = "2s"\n')
    loaded = load(
        file, {"HEADRACE_LISTEN__NATIVE": "127.0.0.1:3", "HEADRACE_LISTEN__ADMIN": "127.0.0.1:4"}, {"listen.native": ("--listen", "127.0.0.1:5")}
    )
    assert loaded.config.listen.native == "127.0.0.1:5"
    assert loaded.config.listen.admin == "127.0.0.1:4"
    assert loaded.config.connection.heartbeat_ms == 2000
    assert loaded.origins["listen.native"] == "--listen"
    assert loaded.origins["listen.admin"] == "HEADRACE_LISTEN__ADMIN"
    assert loaded.origins["connection.heartbeat_ms"] == "headrace.toml:5"
    assert loaded.origins["log.level"] == "default"


def test_sizes_durations_lists_and_nested_defaults(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        '[storage]\nwal_bytes_max = "2GiB"\n[defaults.queue]\nlease_ms = "1m"\nbackoff_ms = ["1s", 5000]\n[defaults.stream]\nretention_ms = "7d"\n',
    )
    config = load(file, {"HEADRACE_DEFAULTS__QUEUE__MAX_DELIVERIES": "5"}).config
    assert config.storage.wal_bytes_max == 2 << 30
    assert config.defaults.queue == QueueSpec(lease_ms=60_000, backoff_ms=(1000, 5000), max_deliveries=5)
    assert config.defaults.stream.retention_ms == 7 * 86_400_000
    assert load(None, {"HEADRACE_DEFAULTS__QUEUE__BACKOFF_MS": "1s, 250ms"}).config.defaults.queue.backoff_ms == (1000, 250)


def test_every_mistake_is_reported_with_its_place(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        """
[listen]
nativ = "127.0.0.1:1"
admin = "nonsense"
[limits]
connections_max = 0
frame_bytes_max = "many"
[brokr]
name = "x"
[connection]
wal_bytes_max = 5
[defaults.queue]
overflow = "burst"
""",
    )
    mistakes = {m.setting: m for m in read(file, {"HEADRACE_LOG__LEVEL": "loud", "HEADRACE_LOGG__LEVEL": "info"}, {}).mistakes}
    assert set(mistakes) == {
        "listen.nativ", "listen.admin", "limits.connections_max", "limits.frame_bytes_max", "brokr", "connection.wal_bytes_max",
        "defaults.queue.overflow", "log.level", "logg.level",
    }  # fmt: skip
    assert "did you mean native?" in mistakes["listen.nativ"].message
    assert mistakes["listen.nativ"].origin == "headrace.toml:3"
    assert "HOST:PORT" in mistakes["listen.admin"].message
    assert "64KiB" in mistakes["limits.frame_bytes_max"].message
    assert ">= 1" in mistakes["limits.connections_max"].message
    assert "did you mean broker?" in mistakes["brokr"].message
    assert "in [storage]" in mistakes["connection.wal_bytes_max"].message
    assert mistakes["log.level"].origin == "HEADRACE_LOG__LEVEL"
    assert "did you mean log?" in mistakes["logg.level"].message
    with pytest.raises(Invalid, match="9 mistakes") as caught:
        load(file, {"HEADRACE_LOG__LEVEL": "loud", "HEADRACE_LOGG__LEVEL": "info"})
    assert str(caught.value).count("\n") == 9


@pytest.mark.parametrize("text", ["[listen\n", "listen = 5\n", "undeclared = 3\n", '[[undeclared]]\nkind = "queue"\n', "\udcff"])
def test_a_file_that_makes_no_sense_is_one_mistake(tmp_path: Path, text: str) -> None:
    file = tmp_path / "x.toml"
    file.write_bytes(text.encode("utf-8", "surrogateescape"))
    assert len(read(file, {}).mistakes) == 1


def test_a_missing_file_is_a_mistake_too(tmp_path: Path) -> None:
    assert "cannot be read" in read(tmp_path / "none.toml", {}).mistakes[0].message


def test_other_variables_of_headrace_are_not_settings() -> None:
    assert read(None, {"HEADRACE_URL": "headrace://h:1", "HEADRACE_CONFIG": "x", "PATH": "/bin"}).mistakes == ()


@pytest.mark.parametrize(
    ("text", "setting"),
    [
        ('[listen]\nadmin = "127.0.0.1:7580"', "listen.admin"),
        ('[listen]\nnative_advertise = "0.0.0.0:1"', "listen.native_advertise"),
        ('[limits]\nframe_bytes_max = "1MiB"', "limits.message_bytes_max"),
        ("[limits]\nwrite_buffer_bytes_low = 4194304", "limits.write_buffer_bytes_low"),
        ('[storage]\nflush_bytes_max = "1MiB"', "storage.flush_bytes_max"),
        ('[storage]\nwal_file_bytes = "16MiB"', "storage.wal_file_bytes"),
        ('[storage]\nwal_bytes_max = "64MiB"', "storage.wal_bytes_max"),
        ("[defaults.queue]\npartitions = 0", "defaults.queue"),
        ('[defaults.stream]\ntier = "ephemeral"\ncompaction = true', "defaults.stream"),
        ('[[undeclared]]\npattern = "a"\nsettings = {partitions = 0}', "undeclared[0]"),
    ],
)
def test_contradictions_are_named(tmp_path: Path, text: str, setting: str) -> None:
    assert [m.setting for m in read(write(tmp_path, text), {}).mistakes] == [setting]


def test_undeclared_rules(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        '[defaults.queue]\nmax_deliveries = 3\n[[undeclared]]\npattern = "jobs.*"\nsettings = { lease_ms = "1m" }\n'
        '[[undeclared]]\npattern = "log.?"\nkind = "stream"\n',
    )
    config = load(file, {}).config
    assert config.undeclared_spec("jobs.mail") == (QueueSpec(lease_ms=60_000, max_deliveries=3), ("lease_ms",))
    assert config.undeclared_spec("log.a") == (StreamSpec(), ())
    assert config.undeclared_spec("log.ab") is None
    bad = read(write(tmp_path, '[[undeclared]]\npattern = "a"\nsettings = { lease = 1, ttl_ms = "x" }\npatern = 1\n'), {}).mistakes
    assert [m.setting for m in bad] == ["undeclared[0].settings.lease", "undeclared[0].settings.ttl_ms", "undeclared[0].patern"]


def test_defaults_fill_what_a_declaration_leaves_at_the_builtin_value() -> None:
    config = load(None, {"HEADRACE_DEFAULTS__QUEUE__LEASE_MS": "1m", "HEADRACE_DEFAULTS__STREAM__PARTITIONS": "4"}).config
    assert config.queue_spec(QueueSpec(ttl_ms=5)) == QueueSpec(ttl_ms=5, lease_ms=60_000)
    assert config.queue_spec(QueueSpec(lease_ms=7000)).lease_ms == 7000
    assert config.queue_spec(QueueSpec(), given=("lease_ms",)).lease_ms == QueueSpec().lease_ms
    assert config.stream_spec(StreamSpec()).partitions == 4


def test_shown_as_toml_it_reads_back_to_itself(tmp_path: Path) -> None:
    loaded = load(
        write(
            tmp_path,
            '[listen]\nnative = "[::1]:0"\n[defaults.queue]\nbackoff_ms = [1]\n[[undeclared]]\npattern = "a\\"*"\nsettings = {ttl_ms = 5}\n',
        ),
        {},
    )
    again = load(write(tmp_path, as_toml(loaded.config, loaded.origins)), {})
    assert again.config == loaded.config
    assert msgspec.json.decode(msgspec.json.encode(loaded.config), type=Config) == loaded.config


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [("127.0.0.1:7580", "127.0.0.1", 7580), ("[::1]:0", "::1", 0), (":9", "0.0.0.0", 9), ("broker-1.lan:80", "broker-1.lan", 80)],
)
def test_addresses(text: str, host: str, port: int) -> None:
    address = parse_address(text)
    assert (address.host, address.port) == (host, port)
    assert parse_address(str(address)) == address


@pytest.mark.parametrize("text", ["", "host", "host:", "host:99999", "::1:80", "a b:1", "http://h:1", "h:1/x", "a..b:1", f"{'a' * 64}:1"])
def test_no_addresses(text: str) -> None:
    with pytest.raises(Invalid, match="no address"):
        parse_address(text)


@pytest.mark.parametrize(
    ("listen", "advertise", "expected"),
    [
        ("0.0.0.0:0", "", "box:41"),
        ("127.0.0.1:0", "", "127.0.0.1:41"),
        ("0.0.0.0:1", "pub.example:9", "pub.example:9"),
        ("[::]:1", "pub:0", "pub:41"),
        ("[::1]:1", "", "[::1]:41"),
    ],
)
def test_what_is_advertised(listen: str, advertise: str, expected: str) -> None:
    assert str(advertised(listen, advertise, port=41, hostname="box")) == expected


@given(st.integers(0, 1 << 50))
def test_units_read_back(n: int) -> None:
    assert parse_bytes(bytes_text(n)) == n
    assert parse_duration_ms(duration_text(n)) == n


@pytest.mark.parametrize(
    ("text", "n"), [("1KB", 1000), ("1.5 MiB", 3 << 19), ("4096", 4096), ("2g", 2 << 30), ("1_000", 1000)]
)
def test_sizes(text: str, n: int) -> None:
    assert parse_bytes(text) == n


@pytest.mark.parametrize(("text", "ms"), [("1m30s", 90_000), ("1.5s", 1500), ("10", 10), ("2h 5 min", 7_500_000), ("1w", 604_800_000)])
def test_durations(text: str, ms: int) -> None:
    assert parse_duration_ms(text) == ms


@pytest.mark.parametrize("text", ["", "x", "5x", "5s5", "-1s", "1e3", "٣s"])
def test_neither_size_nor_duration(text: str) -> None:
    with pytest.raises(ValueError, match="for instance"):
        parse_duration_ms(text)
    with pytest.raises(ValueError, match="for instance"):
        parse_bytes(text)


@given(st.text("ab*?", max_size=6), st.text("ab", max_size=6))
def test_globs_against_a_naive_matcher(pattern: str, name: str) -> None:
    def naive(p: str, n: str) -> bool:
        if not p:
            return not n
        if p[0] == "*":
            return naive(p[1:], n) or (bool(n) and naive(p, n[1:]))
        return bool(n) and p[0] in ("?", n[0]) and naive(p[1:], n[1:])

    assert glob_matches(pattern, name) == naive(pattern, name)


@given(st.text(max_size=40))
def test_any_text_for_a_setting_is_taken_or_a_mistake(text: str) -> None:
    for setting in ("listen.native", "limits.frame_bytes_max", "connection.heartbeat_ms", "defaults.queue.backoff_ms", "log.level", "broker.name"):
        loaded = read(None, {}, {setting: ("--set", text)})
        assert loaded.mistakes or not contradictions(loaded.config)


def test_the_reference_page_is_current() -> None:
    assert (ROOT / "docs/configuration.md").read_text() == reference(), "run `make fmt`"


def test_every_setting_has_a_meaning_in_the_reference() -> None:
    rows = [line for line in reference().splitlines() if line.startswith("| `")]
    assert [row for row in rows if row.rstrip().endswith("|  |")] == []
