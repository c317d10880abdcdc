"""The names of a lone broker."""

from headrace.broker.catalogue import COUNTER, Catalogue
from headrace.cluster.local import LocalCoordinator
from headrace.model.specs import QueueSpec
from tests.unit.test_importing import Small


def catalogue(state: Small) -> Catalogue:
    return Catalogue(
        LocalCoordinator(state, state.commit_state),  # type: ignore[arg-type]
        new_id=lambda: "0" * 32, wall_ms=lambda: 0, undeclared=lambda name, kind: None, changed=lambda item, change: None,
    )  # fmt: skip


async def test_a_partition_id_is_given_once_though_the_counter_was_lost() -> None:
    """A damaged disk had kept the name and not the counter: another name was given the same partition."""
    state = Small()
    before = await catalogue(state).declare("orders", QueueSpec(partitions=3))
    await LocalCoordinator(state, state.commit_state).transact({}, {COUNTER: None})  # type: ignore[arg-type]
    again = catalogue(state)
    await again.open()
    assert not {*before.partitions} & {*(await again.declare("more", QueueSpec(partitions=3))).partitions}
