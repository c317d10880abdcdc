"""Going on with one survivor, offline: the operator's last resort when the majority of the voters is lost for good.

Owns the reading and writing of that one directory. What is written, and when it is refused, is ``core.formation.recovering``'s.
"""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec

from headrace.cluster.formation.addresses import settled
from headrace.cluster.formation.declaring import known, member_name
from headrace.cluster.formation.slots import Disk, Slots
from headrace.core.formation.records import Records
from headrace.core.formation.recovering import Recovered, recover
from headrace.model.config import Config
from headrace.model.errors import Conflict, Damaged, NotFound


class Survey(msgspec.Struct, frozen=True, kw_only=True):
    """What lies in a survivor's directory. ``refusal``: why it cannot go on alone, "" = it can."""

    name: str
    data_dir: str
    cluster_id: str = ""
    generation: int = 0
    version: int = 0
    """Of the config that it has noted as committed."""
    revision: int = 0
    """Of the cluster's record that it has noted last: a survivor with a higher one knows more."""
    data_bytes: int = 0
    given_up: tuple[str, ...] = ()
    """The other members that were enrolled: what only they hold is lost, or away until they are taken in again."""
    refusal: str = ""


def survey(config: Config, disk: Disk) -> Survey:
    """Looks, and changes nothing. ``DataDirLocked`` while its broker runs, ``Damaged``, ``Conflict``, ``NotFound`` without a directory. Blocks."""
    with _opened(config, disk) as (slots, records):
        name, identity = member_name(config), records.identity
        outcome = _recovered(config, records, confirm=identity.cluster_id if identity is not None else "")
        charter = records.applied.charter if records.applied is not None else None
        return Survey(
            name=name, data_dir=slots.root, cluster_id=identity.cluster_id if identity is not None else "",
            generation=identity.generation if identity is not None else 0, data_bytes=slots.data_bytes(), refusal=outcome.refusal,
            version=charter.config.version if charter is not None else 0, revision=charter.revision if charter is not None else 0,
            given_up=tuple(e.name for e in charter.roster if e.name != name) if charter is not None else (),
        )  # fmt: skip


def keep(config: Config, disk: Disk, *, confirm: str) -> str:
    """Makes this broker's directory the first member of a cluster of its own; gives the id of that. ``confirm``: the id of the cluster whose other
    members are given up. Errors as of ``survey``; ``Conflict`` also if it cannot be, with the reason. Blocks."""
    with _opened(config, disk) as (slots, records):
        outcome = _recovered(config, records, confirm=confirm)
        if outcome.refusal:
            raise Conflict(outcome.refusal, hint="look at what every survivor holds before anything is given up")
        for record in outcome.records:  # the identity last: until it is written the directory is what it was
            slots.write(record)
        return outcome.cluster_id


@contextmanager
def _opened(config: Config, disk: Disk) -> Iterator[tuple[Slots, Records]]:
    if config.coordination.etcd.endpoints:
        raise Conflict(
            "the consensus of this cluster is an etcd that runs anyway", hint="recover that with its own tools; brokers have no part in it"
        )
    if not disk.exists(config.broker.data_dir):
        raise NotFound(f"there is no data directory {config.broker.data_dir}", hint="name the survivor's: --data-dir, or its configuration: --config")
    slots = Slots(disk, config.broker.data_dir)
    slots.open()
    try:
        records, damaged = slots.read()
        if damaged:
            raise Damaged(f"the records of this directory cannot be read: {damaged}")
        yield slots, records
    finally:
        slots.close()


def _recovered(config: Config, records: Records, *, confirm: str) -> Recovered:
    return recover(records, name=member_name(config), address=_address(config, records), confirm=confirm, entropy=secrets.token_bytes(32))


def _address(config: Config, records: Records) -> str:
    name = member_name(config)
    declared = next((m.address for c in known(records) if (m := c.member(name)) is not None), "")
    return settled(config, declared).listen.peer
