"""What no single setting shows: settings that contradict each other, each named with what to do.

Invariant: I1 a ``Config`` for which ``contradictions`` is empty can be started.
"""

from headrace.model.config import KIB, Config, Coordination, Membership, parse_address, rule_spec
from headrace.model.errors import Invalid
from headrace.model.seeds import seed_mistake
from headrace.model.specs import check_queue, check_stream


def contradictions(config: Config) -> list[tuple[str, str]]:
    """Every mistake that no single field shows, as (setting, what is wrong)."""
    wrong: list[tuple[str, str]] = []
    names = ("native", "admin", "mqtt", "mqtt_ws", "peer", "gossip")
    for name in (*names, *(f"{name}_advertise" for name in ("native", "admin", "peer", "gossip"))):
        text = getattr(config.listen, name)
        if (not text and name != "native") or (name in ("admin", "mqtt", "mqtt_ws") and text in ("off", "auto")):
            continue
        try:
            address = parse_address(text)
        except Invalid as e:
            wrong.append((f"listen.{name}", f"{e}; {e.hint}"))
            continue
        if name.endswith("_advertise") and address.unspecified:
            wrong.append((f"listen.{name}", f"{text} names no machine, so others could not reach it; give a host name or an address"))
    for name in ("mqtt", "mqtt_ws"):
        named = getattr(config.listen, name) not in ("", "off", "auto")
        if named and config.mqtt.packet_bytes_max > config.storage.flush_bytes_max - 64 * KIB:
            wrong.append(("mqtt.packet_bytes_max", f"must be at least 64 KiB below storage.flush_bytes_max ({config.storage.flush_bytes_max})"))
    opened = names if config.coordination.mode == "coordinated" else names[:4]
    for i, name in enumerate(opened):
        text = getattr(config.listen, name)
        for other in opened[:i]:
            if text not in ("", "off", "auto") and text == getattr(config.listen, other) and not text.endswith(":0"):
                wrong.append((f"listen.{name}", f"it is the same address as listen.{other} ({text}); give it another port"))
    bounds, disk = config.limits, config.storage
    if bounds.message_bytes_max > bounds.frame_bytes_max - 64 * KIB:
        wrong.append(("limits.message_bytes_max", f"must be at least 64 KiB below limits.frame_bytes_max ({bounds.frame_bytes_max})"))
    if bounds.write_buffer_bytes_low >= bounds.write_buffer_bytes_high:
        wrong.append(("limits.write_buffer_bytes_low", f"must be below limits.write_buffer_bytes_high ({bounds.write_buffer_bytes_high})"))
    if disk.flush_bytes_max < bounds.frame_bytes_max:
        wrong.append(("storage.flush_bytes_max", f"must hold one frame: at least limits.frame_bytes_max ({bounds.frame_bytes_max})"))
    if disk.wal_file_bytes < 2 * disk.flush_bytes_max:
        wrong.append(("storage.wal_file_bytes", f"must hold two flushes: at least twice storage.flush_bytes_max ({disk.flush_bytes_max})"))
    if disk.wal_bytes_max < 2 * disk.wal_file_bytes:
        wrong.append(("storage.wal_bytes_max", f"must hold at least two files of storage.wal_file_bytes ({disk.wal_file_bytes})"))
    wrong += _coordination(config.coordination)
    wrong += _cluster(config)
    wrong += _membership(config.membership)
    try:
        check_queue(config.defaults.queue)
    except Invalid as e:
        wrong.append(("defaults.queue", str(e)))
    try:
        check_stream(config.defaults.stream)
    except Invalid as e:
        wrong.append(("defaults.stream", str(e)))
    for i, rule in enumerate(config.undeclared):
        try:
            rule_spec(rule, config)
        except Invalid as e:
            wrong.append((f"undeclared[{i}]", str(e)))
    return wrong


def _coordination(c: Coordination) -> list[tuple[str, str]]:
    wrong: list[tuple[str, str]] = []
    for text in c.etcd.endpoints:
        try:
            address = parse_address(text)
        except Invalid as e:
            wrong.append(("coordination.etcd.endpoints", f"{e}; {e.hint}"))
            continue
        if address.unspecified:
            wrong.append(("coordination.etcd.endpoints", f"{text} names no machine, so it could not be reached; give a host name or an address"))
    if c.election_ms and c.election_ms < 5 * (c.heartbeat_ms or 50):
        wrong.append(("coordination.election_ms", f"must be at least five times coordination.heartbeat_ms ({c.heartbeat_ms or 50})"))
    if bool(c.etcd.tls.cert) != bool(c.etcd.tls.key):
        wrong.append(("coordination.etcd.tls", "cert and key belong together"))
    if bool(c.etcd.user) != bool(c.etcd.password_file):
        wrong.append(("coordination.etcd.user", "user and password_file belong together"))
    if (c.etcd.tls.ca or c.etcd.user) and not c.etcd.endpoints:
        wrong.append(("coordination.etcd.endpoints", "tls and user are for an etcd that runs anyway; name its endpoints"))
    return wrong


def _cluster(config: Config) -> list[tuple[str, str]]:
    c = config.cluster
    given = [name for name, value in (("file", c.file), ("voters", c.voters), ("declared", c.declared)) if value]
    wrong = [(f"cluster.{name}", f"a cluster is declared once: leave out this or cluster.{given[0]}") for name in given[1:]]
    if given and config.coordination.mode != "coordinated":
        wrong.append((f"cluster.{given[0]}", 'a cluster is declared for a lone broker: set coordination.mode = "coordinated", or leave it out'))
    for seeds, texts in (("cluster.seeds", c.seeds), ("membership.seeds", config.membership.seeds)):
        if given and texts:
            wrong.append((seeds, f"cluster.{given[0]} says where the members are: leave the seeds out, or the declared cluster"))
    if c.seeds and config.coordination.mode != "coordinated":
        wrong.append(("cluster.seeds", 'a lone broker looks for nobody: set coordination.mode = "coordinated", or leave them out'))
    return wrong + [("cluster.seeds", why) for text in c.seeds if (why := seed_mistake(text))]


def _membership(m: Membership) -> list[tuple[str, str]]:
    wrong: list[tuple[str, str]] = []
    for text in m.seeds:
        try:
            address = parse_address(text)
        except Invalid as e:
            wrong.append(("membership.seeds", f"{e}; {e.hint}"))
            continue
        if address.unspecified or not address.port:
            wrong.append(("membership.seeds", f"{text} names no machine and port; give the gossip address of a broker"))
    if m.probe_timeout_ms >= m.probe_interval_ms:
        wrong.append(("membership.probe_timeout_ms", f"must be below membership.probe_interval_ms ({m.probe_interval_ms})"))
    return wrong


assert not contradictions(Config()), contradictions(Config())
