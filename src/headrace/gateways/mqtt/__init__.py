"""MQTT 3.1.1 and 5.0 over TCP and WebSocket, on a lone broker: connections, session partitions on the log, and the hub between them.

The rules are those of ``core.mqtt``; here are sockets, the broker's turn, and the journal.
"""
