"""Who is in the cluster and seems to live: the interface, its implementation by gossip, and noticing that this broker itself stood still.

``gossip`` is not imported here: it needs a package that a lone broker never loads.
"""

from headrace.cluster.membership.interface import Changed, Claimed, Event, Member, Membership, Reread, State
from headrace.cluster.membership.pauses import Pauses

__all__ = ["Membership", "Member", "State", "Event", "Changed", "Claimed", "Reread", "Pauses"]
