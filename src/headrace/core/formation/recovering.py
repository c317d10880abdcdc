"""Going on with one survivor after the majority was lost for good: an operator's command, offline, never automatic.

Owns what is written to the survivor's directory. The survivor's data become those of a new cluster, of a higher generation, that supersedes the old
one: whoever of the old one comes back later gives its own copy up for it, unless it serves.
"""

import hashlib

import msgspec
from msgspec.structs import replace

from headrace.core.formation.records import Acceptance, Bootstrap, Enrolled, Record, Records


class Recovered(msgspec.Struct, frozen=True, kw_only=True):
    """``records`` are to be stored, in order, as one step if that can be; empty = it is refused, for the reason in ``refusal``."""

    records: tuple[Record, ...] = ()
    cluster_id: str = ""
    refusal: str = ""


def recover(records: Records, *, name: str, address: str, confirm: str, entropy: bytes) -> Recovered:
    """What makes the directory of ``name`` the first member of a cluster of its own; ``confirm``: the id of the cluster whose others are given up."""
    identity, applied = records.identity, records.applied
    if identity is None or not identity.formed or identity.standalone or applied is None:
        return Recovered(refusal="this directory has never been a member of a cluster")
    if identity.removed_version:
        return Recovered(refusal=f"version {identity.removed_version} removed this directory from its cluster")
    if not identity.seat or not identity.settled:
        return Recovered(refusal="this broker is an observer: its directory holds no copy of the consensus")
    if confirm != identity.cluster_id:
        return Recovered(refusal=f"to go on without the others, confirm the cluster: {identity.cluster_id}")
    member = applied.charter.config.member(name)
    if member is None or member.role != "voter":
        return Recovered(refusal=f"version {applied.charter.config.version} does not list {name} as a voter")
    cluster_id = hashlib.blake2b(entropy + f"/recover/{name}".encode(), digest_size=16).hexdigest()
    voter = Enrolled(name=name, incarnation=identity.incarnation, seat=identity.seat, address=member.address or address)
    bootstrap = Bootstrap(
        cluster_id=cluster_id, config=applied.charter.config, ballot=1, seed=name, seed_incarnation=identity.incarnation, voters=(voter,)
    )
    generation = max(identity.generation, applied.charter.generation) + 1
    born = replace(identity, cluster_id=cluster_id, formed=False, recovering=True, generation=generation)
    return Recovered(records=(Acceptance(bootstrap=bootstrap), born), cluster_id=cluster_id)
