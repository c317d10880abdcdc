"""The blocking client under its public name: ``headrace.blocking.connect("headrace://...")``."""

from headrace.client.blocking import BlockingClient, BlockingConsumer, BlockingPublisher, BlockingReader, connect

__all__ = ["BlockingClient", "BlockingConsumer", "BlockingPublisher", "BlockingReader", "connect"]
