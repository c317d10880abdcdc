"""The one table of default ports. Every listener has a bind and an advertised address; 0.0.0.0 is never advertised."""

from enum import IntEnum


class DefaultPort(IntEnum):
    """Port of each listener when nothing else is configured (0 in a test means: the system picks)."""

    NATIVE = 7580
    ADMIN = 7581
    PEER = 7582
    GOSSIP = 7583
    MQTT = 1883
    MQTT_WEBSOCKET = 8083
    MQTT_TLS = 8883
    NATIVE_TLS = 7590
    ETCD_CLIENT = 7584
    ETCD_PEER = 7585
