"""Protocols at the edge: bytes to the broker's verbs and back. A gateway owns connections and their framing, never a message."""
