"""Headrace: a clustered message broker. Durable queues, replayable streams and MQTT on one replicated log."""

__version__ = "0.1.0"
