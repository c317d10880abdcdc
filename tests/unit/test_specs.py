"""What a queue or stream in a cluster gets when it is declared without a word about its copies."""

import pytest

from headrace.model.specs import QueueSpec, Spec, StreamSpec, check_queue, replicated


@pytest.mark.parametrize(
    ("members", "factor", "durability", "in_sync"),
    [
        (0, 1, "local_durable", 1), (1, 1, "local_durable", 1), (2, 2, "replica_durable", 1), (3, 3, "replica_durable", 2),
        (21, 3, "replica_durable", 2),
    ],
)
def test_defaults_follow_the_number_of_brokers(members: int, factor: int, durability: str, in_sync: int) -> None:
    for spec in (QueueSpec(ttl_ms=7), StreamSpec(partitions=4)):
        got = replicated(spec, (), members)
        assert (got.replication_factor, got.durability, got.min_in_sync_replicas) == (factor, durability, in_sync)
        assert (got.partitions, getattr(got, "ttl_ms", 7)) == (spec.partitions, 7)


@pytest.mark.parametrize(
    ("spec", "given", "wanted"),
    [
        (QueueSpec(), ("replication_factor",), (1, "local_durable", 1)),
        (QueueSpec(), ("durability",), (3, "local_durable", 1)),
        (QueueSpec(), ("min_in_sync_replicas",), (3, "replica_durable", 1)),
        (QueueSpec(replication_factor=2), (), (2, "replica_durable", 1)),
        (QueueSpec(replication_factor=5), (), (5, "replica_durable", 2)),
        (QueueSpec(durability="majority_durable"), (), (3, "majority_durable", 2)),
        (QueueSpec(replication_factor=5, durability="replica_durable", min_in_sync_replicas=3), (), (5, "replica_durable", 3)),
        (StreamSpec(tier="ephemeral"), (), (1, "local_durable", 1)),
        (StreamSpec(tier="speculative"), (), (3, "replica_durable", 2)),
    ],
)
def test_what_was_asked_for_is_kept(spec: Spec, given: tuple[str, ...], wanted: tuple[int, str, int]) -> None:
    got = replicated(spec, given, 3)
    assert (got.replication_factor, got.durability, got.min_in_sync_replicas) == wanted
    if isinstance(got, QueueSpec):
        check_queue(got)


def test_declared_again_after_the_cluster_has_grown_it_is_the_same() -> None:
    first = replicated(QueueSpec(), (), 1)
    assert replicated(QueueSpec(), (), 3, first) == first
    other = replicated(QueueSpec(replication_factor=3), (), 3, first)
    assert (other.replication_factor, other.durability) == (3, first.durability)
    assert replicated(QueueSpec(), (), 3, StreamSpec()).replication_factor == 3  # of the other kind: refused elsewhere
