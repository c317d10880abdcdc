"""The secrets that the brokers of a cluster share, and the keys made of them.

Owns which secrets are accepted, which one is used, and how keys are derived: HKDF with SHA-256 (RFC 5869), one purpose, one key. A secret itself is
never sent, logged or shown; its id, derived like a key, may be. Does not know who uses the keys.

Rotation, each step on every broker before the next: add the new secret, use it, remove the old one.

I1 one secret is used, and it is accepted. I2 what is removed is accepted no more from that moment on.
"""

import hmac
from collections.abc import Iterator, Sequence
from hashlib import sha256
from typing import Final

from headrace.model import limits
from headrace.model.errors import Conflict, Invalid, NotFound
from headrace.wire.peer import KEY_ID_BYTES

_SALT: Final = b"headrace cluster secret"
_HASH_BYTES: Final = 32


def hkdf(secret: bytes, *, salt: bytes, info: bytes, nbytes: int) -> bytes:
    """RFC 5869 with SHA-256; at most 255 x 32 bytes."""
    assert 0 < nbytes <= 255 * _HASH_BYTES
    pseudorandom = hmac.digest(salt or bytes(_HASH_BYTES), secret, "sha256")
    made, block = b"", b""
    for i in range(1, -(-nbytes // _HASH_BYTES) + 1):
        block = hmac.digest(pseudorandom, block + info + bytes((i,)), "sha256")
        made += block
    return made[:nbytes]


class Secret:
    """One secret; shows only its id."""

    __slots__ = ("_secret", "id")

    def __init__(self, secret: bytes) -> None:
        if len(secret) < limits.SECRET_BYTES_MIN:
            raise Invalid(
                f"a cluster secret has at least {limits.SECRET_BYTES_MIN} bytes, this one {len(secret)}",
                hint="make one: python -c 'import secrets; print(secrets.token_hex(32))'",
            )
        self._secret = secret
        self.id = self.key("id", KEY_ID_BYTES)

    def key(self, purpose: str, nbytes: int = 32) -> bytes:
        """The key for one purpose."""
        return hkdf(self._secret, salt=_SALT, info=purpose.encode(), nbytes=nbytes)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and hmac.compare_digest(sha256(self._secret).digest(), sha256(other._secret).digest())

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Secret({self.id.hex()})"


def secret_lines(text: str) -> list[bytes]:
    """Of a file's text: one secret a line, the used one first; empty lines and those that begin with # do not count. ``Invalid`` if there is none, or
    one is too short."""
    lines = [line.strip() for line in text.splitlines()]
    found = [line.encode() for line in lines if line and not line.startswith("#")]
    Secrets(found)
    return found


class Secrets:
    """Those that are accepted, the used one first."""

    def __init__(self, secrets: Sequence[bytes]) -> None:
        if not secrets:
            raise Invalid("a cluster needs a secret", hint="put one into the file that peers.secret_file names")
        self._accepted: list[Secret] = []
        for secret in secrets:
            self.add(secret)

    @property
    def used(self) -> Secret:
        return self._accepted[0]

    def __iter__(self) -> Iterator[Secret]:
        return iter(self._accepted)

    def ids(self) -> list[str]:
        """For people, the used one first."""
        return [s.id.hex() for s in self._accepted]

    def find(self, id: bytes) -> Secret | None:
        return next((s for s in self._accepted if s.id == id), None)

    def add(self, secret: bytes) -> Secret:
        """Accepts it from now on; nothing changes if it is accepted already."""
        made = Secret(secret)
        known = self.find(made.id)
        if known is not None:
            return known
        if len(self._accepted) >= limits.SECRETS_MAX:
            raise Conflict(f"{len(self._accepted)} secrets are accepted already", hint="remove an old one first")
        self._accepted.append(made)
        return made

    def use(self, id: bytes) -> Secret:
        """Proves with it from now on."""
        secret = self.known(id)
        self._accepted.remove(secret)
        self._accepted.insert(0, secret)
        return secret

    def remove(self, id: bytes) -> Secret:
        """Accepts it no more."""
        secret = self.known(id)
        if secret is self.used:
            raise Conflict(f"the secret {id.hex()} is in use", hint="use another one first, on every broker")
        self._accepted.remove(secret)
        return secret

    def known(self, id: bytes) -> Secret:
        """That one, or ``NotFound``."""
        secret = self.find(id)
        if secret is None:
            raise NotFound(f"no secret {id.hex()} is accepted here; there are {', '.join(self.ids())}", hint="add it first, on every broker")
        return secret

    def __repr__(self) -> str:
        return f"Secrets({', '.join(self.ids())})"
