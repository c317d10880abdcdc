"""``ClusterAdmin``: what operators want of a cluster, from a program: over the admin HTTP of any one broker, serving or waiting.

Blocking, one connection a call, so that a script needs no event loop; in asynchronous code call it in a thread (``asyncio.to_thread``). Answers are
the values of ``wire.formation``; what a broker refuses is raised as the ``HeadraceError`` that it is.
"""

import http.client
import os
from typing import Any, Final, Literal, TypeVar
from urllib.parse import quote, urlsplit

import msgspec

from headrace.model.errors import Invalid, Malformed, NotConnected, UnknownOutcome, WrongProtocol, from_wire
from headrace.model.hosts import is_host
from headrace.model.ports import DefaultPort
from headrace.wire import control
from headrace.wire.control import Election, ForceElection
from headrace.wire.formation import AddVoter, Fed, Feed, Members, Planned, Secrets, SecretStage
from headrace.wire.shown import shown

DEFAULT_ADMIN: Final = f"http://127.0.0.1:{DefaultPort.ADMIN.value}"
TIMEOUT_S: Final = 30.0
ANSWER_BYTES_MAX: Final = 64 * 1024 * 1024
PATH: Final = "/admin/api/cluster"
T = TypeVar("T")


class ClusterAdmin:
    """The cluster, asked at the broker whose admin HTTP is at ``url`` (default: ``HEADRACE_ADMIN_URL``, else the local one)."""

    def __init__(self, url: str = "", *, timeout_s: float = TIMEOUT_S) -> None:
        self.url = url or os.environ.get("HEADRACE_ADMIN_URL", "") or DEFAULT_ADMIN
        parts = urlsplit(self.url if "://" in self.url else f"http://{self.url}")
        try:
            self._host, self._port = parts.hostname, parts.port or DefaultPort.ADMIN.value
        except ValueError as e:
            raise Invalid(f"{self.url!r} is no address: {e}", hint=f"write {DEFAULT_ADMIN}") from None
        if parts.scheme != "http" or not self._host or not is_host(self._host):
            raise Invalid(f"{self.url!r} is no address of an admin HTTP", hint=f"write {DEFAULT_ADMIN}")
        self._timeout_s = timeout_s

    def status(self) -> dict[str, Any]:
        """How the broker stands: state, reason, on whom it waits since when, peers, quorum, steps that are left."""
        return self._ask("GET", "", None, dict[str, Any])

    def members(self) -> Members:
        """Who is declared and who was heard, as that broker knows them."""
        return self._ask("GET", "/members", None, Members)

    def apply(self, config: str | dict[str, Any] | None = None, *, auto_version: bool = False) -> Fed:
        """Applies a declared config: TOML, or a table; None: the one of the broker's own configuration, read again. Every verdict is an answer."""
        return self._ask("POST", "/apply", _feed(config, auto_version), Fed)

    def plan(self, config: str | dict[str, Any] | None = None, *, auto_version: bool = False) -> Planned:
        """What applying it would bring; nothing is done."""
        return self._ask("POST", "/plan", _feed(config, auto_version), Planned)

    def add_voter(self, name: str, address: str = "") -> Fed:
        """Writes the next version of the config, in which ``name`` votes; ``address``: of its peer listener, if it is new."""
        return self._ask("PUT", f"/voters/{quote(name, safe='')}", AddVoter(address=address), Fed)

    def remove_voter(self, name: str, *, leave: bool = False) -> Fed:
        """Writes the next version, in which ``name`` is an observer, or (``leave``) is not listed. ``Conflict`` if the quorum would be lost."""
        return self._ask("DELETE", f"/voters/{quote(name, safe='')}{'?leave=true' if leave else ''}", None, Fed)

    def force_election(self, name: str, partition: int = 0, *, chosen: str = "", accept: Election | None = None, by: str = "") -> Election:
        """What it costs to have a copy of a partition serve that may lack confirmed messages: ``chosen`` (name or id of a broker), or the one that
        reaches furthest. With ``accept``, an answer to that, it is done, and recorded as accepted ``by``. ``Conflict`` while somebody who holds
        everything can serve, and if the partition has changed since."""
        version, chosen = (accept.version, accept.chosen) if accept is not None else (0, chosen)
        asked = ForceElection(name=name, partition=partition, chosen=chosen, accept_data_loss=accept is not None, version=version, by=by)
        return self._ask("POST", "/elections", asked, Election)

    def secrets(self) -> Secrets:
        """Ids of the secrets that this broker accepts, and of those in its file."""
        return self._ask("GET", "/secrets", None, Secrets)

    def rotate(self, stage: Literal["add", "use", "remove"], *, force: bool = False) -> Secrets:
        """One stage on this one broker, by its secret file as that is now; every broker before the next stage."""
        return self._ask("POST", "/secrets", SecretStage(stage=stage, force=force), Secrets)

    def _ask(self, method: str, path: str, body: msgspec.Struct | None, answer: type[T]) -> T:
        assert self._host is not None
        connection = http.client.HTTPConnection(self._host, self._port, timeout=self._timeout_s)
        try:
            try:
                connection.connect()
            except OSError as e:
                hint = "is it started, with that admin address? give another with --admin or HEADRACE_ADMIN_URL"
                raise NotConnected(f"no broker answers at {self.url}: {e.strerror or e}", hint=hint) from None
            try:
                sent = None if body is None else msgspec.json.encode(shown(body))
                connection.request(method, PATH + path, sent, {"content-type": "application/json"})
                response = connection.getresponse()
                raw = response.read(ANSWER_BYTES_MAX)
                if response.length:  # what is left of the answer did not come, or is too much
                    raise http.client.IncompleteRead(raw, response.length)
            except (OSError, http.client.HTTPException) as e:
                why = f"{self.url} did not answer: {str(e) or type(e).__name__}"
                raise UnknownOutcome(why, hint="ask how it stands: headrace cluster status") from None
        finally:
            connection.close()
        return self._read(raw, answer)

    def _read(self, raw: bytes, answer: type[T]) -> T:
        try:
            value = msgspec.json.decode(raw)
            if isinstance(value, dict) and {"code", "error", "message"} <= value.keys() and "verdict" not in value:
                raise from_wire(int(value["code"]), str(value["message"]), str(value.get("hint", "")))
            if issubclass(answer, control.Message) and isinstance(value, dict):  # it comes without its tag
                value = {"t": answer.__struct_config__.tag, **value}
            return msgspec.convert(value, answer)
        except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError, ValueError, TypeError) as e:
            raise WrongProtocol(f"what answers at {self.url} is no Headrace broker of this release: {e}", hint="give its admin address") from None


def _feed(config: str | dict[str, Any] | None, auto_version: bool) -> Feed:
    if isinstance(config, str) and not config.strip():
        raise Malformed("the config is empty", hint="give version and members, or nothing at all to have the configured file read again")
    text = config if isinstance(config, str) else ""
    return Feed(text=text, config=config if isinstance(config, dict) else None, auto_version=auto_version)
