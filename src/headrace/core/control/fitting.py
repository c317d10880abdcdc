"""Whether brokers can hold each other's copies: what one may write as an owner must fit into the log files of every other."""

from collections.abc import Iterable

from headrace.model.cluster import Registered


def misfit(me: Registered, others: Iterable[Registered]) -> str:
    """Why ``me`` cannot be a broker of one cluster with ``others``, and what to set; "" if it can."""
    for other in others:
        if other.id == me.id:
            continue
        if _too_large(other, me):
            return (
                f"broker {other.name} writes entries of up to {other.writes_bytes_max} bytes, and the log files here take {me.takes_bytes_max}: "
                "raise storage.wal_file_bytes here, or lower limits.frame_bytes_max there"
            )
        if _too_large(me, other):
            return (
                f"this broker writes entries of up to {me.writes_bytes_max} bytes, and the log files of broker {other.name} take "
                f"{other.takes_bytes_max}: lower limits.frame_bytes_max here, or raise storage.wal_file_bytes there"
            )
    return ""


def _too_large(owner: Registered, follower: Registered) -> bool:
    return 0 < follower.takes_bytes_max < owner.writes_bytes_max
