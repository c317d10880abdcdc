"""Control messages: the bodies of REQUEST, REPLY, ERROR and EVENT, msgpack maps tagged by their type in the field ``t``.

Unknown fields are ignored, missing ones take their default, so additions stay compatible. The admin HTTP interface, the CLI and the client all speak
these verbs; ``broker.verbs`` carries them out. Ranges are half-open, times integer milliseconds, offsets and counts unsigned.

One module a topic; here is the list of all that may be sent, and the codecs. Users write ``control.Hello``, wherever it stands; those about MQTT are
``control.mqtt``'s. A message that is not in ``Request``, ``Reply`` or ``Event`` is understood by nobody.
"""

import msgspec

from headrace.wire.control.brokers import BrokerStatus, Drain, Quarantine, QuarantineItem, QuarantineList, QuarantineRepair, Status
from headrace.wire.control.catalogue import (
    AlterQueue,
    AlterStream,
    DeclareQueue,
    DeclareStream,
    Delete,
    Describe,
    Done,
    Info,
    List,
    Listing,
    PartitionInfo,
    RoutingInfo,
)
from headrace.wire.control.cluster import ClusterTopology, ClusterTopologyInfo, Election, ForceElection, PartitionOwner, Topology, TopologyInfo
from headrace.wire.control.connections import ConnectionInfo, Connections, ConnectionsList
from headrace.wire.control.consuming import Filter, Held, Join, Released, Subscribe, Subscribed, SubscribeStream, Unsubscribe
from headrace.wire.control.events import (
    Assigned,
    CatalogueChanged,
    CursorMoved,
    GoingAway,
    PartitionIsolated,
    PublisherClosed,
    Retracted,
    SubscriptionClosed,
    TopologyChanged,
)
from headrace.wire.control.failure import Failure
from headrace.wire.control.message import Message
from headrace.wire.control.mqtt import MqttReply, MqttRequest
from headrace.wire.control.opening import Hello, Welcome
from headrace.wire.control.publishing import ClosePublisher, OpenPublisher, PublisherOpened, Resolve, Resolved
from headrace.wire.control.queues import Inspect, Inspected, Move, Pause, Peeked, Progress, Purge, Redrive, Repartition, TransferStatus
from headrace.wire.control.streams import CursorDelete, CursorInfo, Cursors, CursorSet, CursorsList, OffsetForTime, Offsets, Trim

Request = (
    Hello
    | OpenPublisher
    | ClosePublisher
    | Resolve
    | Subscribe
    | SubscribeStream
    | Join
    | Released
    | Unsubscribe
    | DeclareQueue
    | AlterQueue
    | DeclareStream
    | AlterStream
    | Delete
    | List
    | Describe
    | Inspect
    | Purge
    | Pause
    | Repartition
    | Move
    | Redrive
    | TransferStatus
    | OffsetForTime
    | Trim
    | CursorsList
    | CursorSet
    | CursorDelete
    | Status
    | Drain
    | QuarantineList
    | QuarantineRepair
    | Topology
    | ClusterTopology
    | ForceElection
    | ConnectionsList
    | MqttRequest
)
Reply = (
    Welcome
    | PublisherOpened
    | Resolved
    | Subscribed
    | Info
    | Listing
    | Done
    | Inspected
    | Progress
    | Offsets
    | Cursors
    | BrokerStatus
    | Quarantine
    | TopologyInfo
    | ClusterTopologyInfo
    | Election
    | Connections
    | MqttReply
)
Event = GoingAway | SubscriptionClosed | PublisherClosed | Assigned | Retracted | CursorMoved | PartitionIsolated | CatalogueChanged | TopologyChanged

encode = msgspec.msgpack.Encoder().encode
decode_request = msgspec.msgpack.Decoder(Request).decode
decode_reply = msgspec.msgpack.Decoder(Reply).decode
decode_event = msgspec.msgpack.Decoder(Event).decode
decode_failure = msgspec.msgpack.Decoder(Failure).decode

__all__ = [
    "Message", "Request", "Reply", "Event",
    "encode", "decode_request", "decode_reply", "decode_event", "decode_failure",
    "Hello", "Welcome",
    "OpenPublisher", "PublisherOpened", "ClosePublisher", "Resolve", "Resolved",
    "Filter", "Held", "Subscribe", "SubscribeStream", "Join", "Released", "Subscribed", "Unsubscribe",
    "DeclareQueue", "AlterQueue", "DeclareStream", "AlterStream", "Delete", "List", "Describe", "PartitionInfo", "RoutingInfo", "Info", "Listing",
    "Done",
    "Inspect", "Peeked", "Inspected", "Purge", "Repartition", "Pause", "Move", "Redrive", "Progress", "TransferStatus",
    "OffsetForTime", "Offsets", "Trim", "CursorsList", "CursorInfo", "Cursors", "CursorSet", "CursorDelete",
    "Status", "BrokerStatus", "Drain", "QuarantineList", "QuarantineItem", "Quarantine", "QuarantineRepair",
    "Topology", "PartitionOwner", "TopologyInfo", "ClusterTopology", "ClusterTopologyInfo", "ForceElection", "Election",
    "ConnectionsList", "ConnectionInfo", "Connections",
    "Failure",
    "GoingAway", "SubscriptionClosed", "PublisherClosed", "Assigned", "Retracted", "CursorMoved", "PartitionIsolated", "CatalogueChanged",
    "TopologyChanged",
]  # fmt: skip
