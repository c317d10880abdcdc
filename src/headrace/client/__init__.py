"""The Python client: an asyncio core and a blocking facade over it. Speaks the native protocol; needs nothing of the broker but ``model``, ``wire``
and the pure parts of ``core``."""
