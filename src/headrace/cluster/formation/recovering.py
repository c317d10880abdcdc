"""Going on with one survivor, offline: the operator's last resort when the majority of the voters is lost for good.

Owns the reading and writing of that one directory. What is written, and when it is refused, is ``core.formation.recovering``'s.
"""

import secrets

from headrace.cluster.formation.addresses import settled
from headrace.cluster.formation.declaring import known, member_name
from headrace.cluster.formation.slots import Disk, Slots
from headrace.core.formation.records import Records
from headrace.core.formation.recovering import recover
from headrace.model.config import Config
from headrace.model.errors import Conflict, Damaged


def keep(config: Config, disk: Disk, *, confirm: str) -> str:
    """Makes this broker's directory the first member of a cluster of its own; gives the id of that. ``confirm``: the id of the cluster whose other
    members are given up. ``DataDirLocked`` while its broker runs, ``Conflict`` if it cannot be, with the reason. Blocks."""
    if config.coordination.etcd.endpoints:
        raise Conflict(
            "the consensus of this cluster is an etcd that runs anyway", hint="recover that with its own tools; brokers have no part in it"
        )
    slots = Slots(disk, config.broker.data_dir)
    slots.open()
    try:
        records, damaged = slots.read()
        if damaged:
            raise Damaged(f"the records of this directory cannot be read: {damaged}")
        outcome = recover(records, name=member_name(config), address=_address(config, records), confirm=confirm, entropy=secrets.token_bytes(32))
        if outcome.refusal:
            raise Conflict(outcome.refusal, hint="look at what every survivor holds before anything is given up")
        for record in outcome.records:  # the identity last: until it is written the directory is what it was
            slots.write(record)
        return outcome.cluster_id
    finally:
        slots.close()


def _address(config: Config, records: Records) -> str:
    name = member_name(config)
    declared = next((m.address for c in known(records) if (m := c.member(name)) is not None), "")
    return settled(config, declared).listen.peer
