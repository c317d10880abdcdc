"""The body of every ERROR, whatever was asked."""

from typing import Any

from headrace.wire.control.message import Message


class Failure(Message, tag="failure"):
    """Body of ERROR: see ``model.errors``. ``detail`` of Elsewhere: ``brokers`` and ``partitions`` as in ``TopologyInfo``, as far as
    they are known."""

    code: int
    message: str
    hint: str = ""
    detail: dict[str, Any] = {}
