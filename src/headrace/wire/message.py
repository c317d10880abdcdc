"""The base of control messages, for the modules that define them (``control``, ``mqtt_control``)."""

import msgspec


class Message(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="t"):
    """Base of all control messages."""
