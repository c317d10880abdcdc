"""Frames between the brokers of a cluster: one authenticated connection a pair, requests, one-way batches, beats and bounds. What is said on it is
others' affair."""

from headrace.cluster.transport.carrier import Carrier, Tcp
from headrace.cluster.transport.link import Lost
from headrace.cluster.transport.settings import Settings
from headrace.cluster.transport.transport import Transport
from headrace.cluster.transport.values import Known, Me, Probed, View, Watcher
from headrace.cluster.transport.visits import Host, Visit

__all__ = ["Transport", "Me", "Known", "Watcher", "Lost", "Probed", "View", "Host", "Visit", "Settings", "Carrier", "Tcp"]
