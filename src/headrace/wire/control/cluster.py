"""Who serves what: the owners of partitions, the whole cluster as one broker shows it, and elections with accepted loss."""

import msgspec

from headrace.wire.control.message import Message
from headrace.wire.topology import BrokerRow, CopyRow, PartitionRow


class Topology(Message, tag="topology"):
    """Asks where partitions are owned: ``TopologyInfo``. In a cluster a connection that wanted the event "topology" is told by ``event.topology`` of
    every change of these names from now on."""

    names: tuple[str, ...] = ()


class PartitionOwner(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    partition: int
    owner: str
    """Id of the broker, "" = nobody serves it now."""
    epoch: int
    routing_version: int = 1
    id: int = 0
    """Of the partition: of two answers the one with the higher id, then the higher epoch, is the newer one."""


class TopologyInfo(Message, tag="topology.info"):
    brokers: dict[str, tuple[str, ...]]
    """Where clients reach each broker that runs now, by id: addresses as ``headrace://HOST:PORT``."""
    partitions: tuple[PartitionOwner, ...] = ()


class ClusterTopology(Message, tag="topology.cluster"):
    """Asks any broker how the whole cluster stands: ``ClusterTopologyInfo``. Partitions come in order of name and number."""

    names: tuple[str, ...] = ()
    """Only these queues and streams; empty = all."""
    after: str = ""
    """Only names above this one: where the last answer ended."""
    limit: int = 1000
    """Partitions; the last name's are all there, even beyond it."""


class ClusterTopologyInfo(Message, tag="topology.cluster.info"):
    broker: str
    """Id of the broker that was asked."""
    state: str
    """Of that broker: serving, or what it is instead."""
    brokers: tuple[BrokerRow, ...]
    partitions: tuple[PartitionRow, ...] = ()
    attention: tuple[str, ...] = ()
    """What somebody should look at, in sentences, the worst first."""
    unanswered: dict[str, str] = {}
    """Brokers that were asked for what they own, or plan, and did not answer: id and why. What only they know is unknown."""
    cluster: str = ""
    controller: str = ""
    """Id, "" = nobody is elected."""
    controller_why: str = ""
    term: int = 0
    """Grows with every election of a controller."""
    planning: str = ""
    """on, paused or dry_run."""
    more: bool = False


class ForceElection(Message, tag="election.force"):
    """What it would cost to have a copy serve a partition that may lack confirmed messages, for a partition that nobody may serve otherwise; with
    ``accept_data_loss`` it is done: ``Election``. Any broker takes it; the controller carries it out."""

    name: str
    partition: int = 0
    chosen: str = ""
    """Name or id of the broker that shall own it; "" = the one whose copy reaches furthest."""
    accept_data_loss: bool = False
    version: int = 0
    """Of the answer that was looked at: what is accepted is what that showed."""
    by: str = ""
    """Who accepts it; it is recorded."""


class Election(Message, tag="election"):
    """What an election with accepted loss costs, or has cost."""

    name: str
    partition: int
    version: int
    """To be named by who accepts it."""
    chosen: str
    """Id of the broker that would own it, or does."""
    reason: str
    """What it holds, and what is lost, in a sentence."""
    given_up: tuple[str, ...] = ()
    """Members that may hold confirmed messages beyond it."""
    copies: tuple[CopyRow, ...] = ()
    elected: bool = False
    epoch: int = 0
    """In which it owns the partition; 0 = nothing was done."""
