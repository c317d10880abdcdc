"""The one tree and the one table of errors.

Every error has a number that travels on the wire, a family, says whether the outcome of the refused request is *definite* (nothing happened)
or *unknown* (it may have happened: retry with the same producer sequence), whether a retry can help, and its face in HTTP, the CLI and MQTT 5.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar, Final, Literal

Family = Literal["malformed", "refused", "elsewhere", "unavailable", "unknown_outcome", "storage", "invariant"]


_NOTHING: Final[Mapping[str, Any]] = MappingProxyType({})


class HeadraceError(Exception):
    """Root of all errors that the broker and the client raise. ``str(e)`` says what and why; ``hint`` says what to do.
    ``detail`` is for programs: of ``Elsewhere`` who serves it, as in ``wire.control.TopologyInfo``."""

    code: ClassVar[int] = 1
    family: ClassVar[Family] = "invariant"
    definite: ClassVar[bool] = True
    retriable: ClassVar[bool] = False
    http: ClassVar[int] = 500
    exit: ClassVar[int] = 1
    mqtt: ClassVar[int] = 0x80
    hint: str = ""
    detail: Mapping[str, Any] = _NOTHING

    def __init__(self, message: str = "", *, hint: str = "", detail: Mapping[str, Any] = _NOTHING) -> None:
        super().__init__(message or (type(self).__doc__ or "").split("\n")[0])
        if hint:
            self.hint = hint
        if detail:
            self.detail = detail


class Malformed(HeadraceError):
    """The bytes are not what the protocol says."""

    code, family, http, exit, mqtt = 10, "malformed", 400, 65, 0x81
    hint = "check the client's version against docs/protocol.md; nothing of the frame was stored"


class TooLarge(Malformed):
    """A frame, message or batch is larger than allowed."""

    code, http, mqtt = 11, 413, 0x95
    hint = "split the message, compress it, or raise the limit in the broker's configuration"


class WrongProtocol(Malformed):
    """Something that is not this protocol spoke on this port."""

    code = 12
    hint = "check the port: `headrace config show` lists the listeners"


class UnsupportedVersion(Malformed):
    """Client and broker have no protocol version in common."""

    code, exit = 13, 69
    hint = "upgrade the older side"


class MqttFault(Malformed):
    """A peer broke a rule of MQTT; ``reason`` is the reason code that the specification names for it."""

    code = 14
    hint = "the connection was closed with that reason; look at the client that sent it"

    def __init__(self, message: str = "", *, hint: str = "", detail: Mapping[str, Any] = _NOTHING, reason: int = 0x81) -> None:
        super().__init__(message, hint=hint, detail=detail)
        self.reason = reason


class Refused(HeadraceError):
    """The request was understood and refused; nothing happened."""

    code, family, http, exit, mqtt = 20, "refused", 400, 64, 0x83


class Invalid(Refused):
    """A value is out of bounds or contradicts another."""

    code, http = 21, 422
    hint = "correct the named fields"


class NotFound(Refused):
    """No queue, stream, cursor or group of that name."""

    code, http, mqtt, exit = 22, 404, 0x90, 66
    hint = "declare it first (`headrace queue declare NAME`, `headrace stream declare NAME`) or set a policy for undeclared names"


class Conflict(Refused):
    """It exists with other settings, or its state forbids the request."""

    code, http, mqtt = 23, 409, 0x83
    hint = "describe it to see its settings; use alter to change what can be changed"


class QueueFull(Refused):
    """The queue's limit is reached and its overflow policy is to refuse."""

    code, http, mqtt, retriable = 24, 507, 0x97, True
    hint = "consume or purge messages, raise the limit, or choose another overflow policy"


class LevelUnavailable(Refused):
    """The confirm level asked for is above what the queue or this broker offers."""

    code, http = 25, 422
    hint = "ask for the queue's own level or a lower one"


class StaleSettle(Refused):
    """The lease is lost: the message was returned, settled or given to another consumer."""

    code, http, mqtt = 26, 410, 0x92
    hint = "handle messages within the lease, or extend it; the message will be (or was) delivered again"


class Unauthorized(Refused):
    """Not allowed, or not authenticated."""

    code, http, mqtt, exit = 27, 401, 0x87, 77


class LimitExceeded(Refused):
    """A bound on connections, channels or requests in flight is reached."""

    code, http, mqtt, retriable = 28, 429, 0x97, True
    hint = "close what is not used, or raise the limit in the broker's configuration"


class ProgramMissing(Refused):
    """A program that has to run beside the broker is not installed."""

    code, exit = 30, 69


class ProgramUnsuitable(Refused):
    """A program was found in a version that must not be used."""

    code, exit = 31, 69


class SequenceTooOld(HeadraceError):
    """A producer sequence lies before the remembered window: whether it was stored is not known any more."""

    code, family, definite, http = 29, "unknown_outcome", False, 409


class Elsewhere(HeadraceError):
    """Another broker serves this."""

    code, family, retriable, http, mqtt = 40, "elsewhere", True, 421, 0x9D


class Fenced(Elsewhere):
    """A newer epoch, generation or session has taken over."""

    code, definite = 41, False


class StaleRouting(Elsewhere):
    """The publish was routed under an old layout; nothing was stored."""

    code = 42


class Unavailable(HeadraceError):
    """It cannot be served now; waiting helps."""

    code, family, retriable, http, exit, mqtt = 50, "unavailable", True, 503, 75, 0x88


class Draining(Unavailable):
    """The broker is going away."""

    code, mqtt = 51, 0x8B
    hint = "reconnect in a moment; the client does so by itself"


class Quarantined(Unavailable):
    """The partition's data is damaged and isolated."""

    code, retriable = 52, False
    hint = "look at `headrace quarantine list`, then `headrace quarantine repair`"


class Paused(Unavailable):
    """Delivery is paused."""

    code = 53


class NotConnected(Unavailable):
    """There is no connection to the broker."""

    code, exit = 54, 69
    hint = "is the broker running? start one with `headrace start`, or name another with --url or HEADRACE_URL"


class CoordinatorUnavailable(Unavailable):
    """The coordinator gives no answer: what is owned is served on, changes of ownership, settings and names wait. Nothing was changed."""

    code = 55
    hint = "a majority of the voters must run and be reached from here"


class RevisionGone(Unavailable):
    """The coordinator does not have that revision any more, or not yet again after a restore."""

    code = 56
    hint = "read everything again at the newest revision"


class UnknownOutcome(HeadraceError):
    """Whether it happened is not known."""

    code, family, definite, retriable, http, exit = 60, "unknown_outcome", False, True, 504, 75
    hint = "retry with the same producer sequence: it is stored once"


class ConfirmTimeout(UnknownOutcome):
    """No confirm came in time."""

    code = 61


class ConnectionLost(UnknownOutcome):
    """The connection broke before the answer came."""

    code = 62


class StorageError(HeadraceError):
    """The disk failed or holds something unexpected."""

    code, family, http, exit, mqtt = 70, "storage", 500, 74, 0x97


class DiskFull(StorageError):
    """The disk is nearly full: publishes are refused, acks and reads go on."""

    code, retriable, http = 71, True, 507
    hint = "free space on the data directory's disk; the broker recovers by itself"


class Damaged(StorageError):
    """Bytes on disk do not match their checksum."""

    code = 72
    hint = "look at `headrace quarantine list`"


class SyncFailed(StorageError):
    """A write or sync failed: what waited for it has an unknown outcome."""

    code, definite = 73, False


class DataDirLocked(StorageError):
    """Another process uses this data directory."""

    code, exit = 74, 73
    hint = "stop the other broker, or give this one another --data-dir"


class Invariant(HeadraceError):
    """The broker broke one of its own rules: a bug."""

    code, exit = 90, 70
    hint = "please report this with the log"


def _walk(cls: type[HeadraceError]) -> list[type[HeadraceError]]:
    return [cls] + [c for sub in cls.__subclasses__() for c in _walk(sub)]


BY_CODE: dict[int, type[HeadraceError]] = {c.code: c for c in _walk(HeadraceError)}
assert len(BY_CODE) == len(_walk(HeadraceError)), "two errors share a number"


def from_wire(code: int, message: str, hint: str = "", detail: Mapping[str, Any] = _NOTHING) -> HeadraceError:
    """The error that a number on the wire stands for (an unknown number: the root)."""
    return BY_CODE.get(code, HeadraceError)(message, hint=hint, detail=detail)
