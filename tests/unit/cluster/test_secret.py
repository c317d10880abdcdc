"""Cluster secrets: derivation, acceptance, rotation."""

import pytest

from headrace.cluster.secret import Secret, Secrets, hkdf, secret_lines
from headrace.model.errors import Conflict, Invalid, NotFound

OLD, NEW = b"the old secret, long enough", b"the new secret, long enough"


def test_hkdf_is_that_of_the_rfc() -> None:
    """Test cases 1 to 3 of RFC 5869, appendix A."""
    made = hkdf(bytes([0x0B] * 22), salt=bytes(range(13)), info=bytes(range(0xF0, 0xFA)), nbytes=42)
    assert made.hex() == "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865"
    made = hkdf(bytes(range(80)), salt=bytes(range(0x60, 0xB0)), info=bytes(range(0xB0, 0x100)), nbytes=82)
    assert made.hex() == (
        "b11e398dc80327a1c8e7f78c596a49344f012eda2d4efad8a050cc4c19afa97c59045a99cac7827271cb41c65e590e09da3275600c2f09b8367793a9aca3db71cc30c58179ec3e87c14c01d5c1f3434f1d87"
    )
    made = hkdf(bytes([0x0B] * 22), salt=b"", info=b"", nbytes=42)
    assert made.hex() == "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8"


def test_a_key_serves_one_purpose() -> None:
    secret = Secret(OLD)
    assert len({secret.key("a"), secret.key("b"), Secret(NEW).key("a"), secret.key("a", 16)}) == 4
    assert secret.key("a") == Secret(OLD).key("a")


def test_short_secrets_are_refused() -> None:
    with pytest.raises(Invalid, match="at least 16 bytes") as refused:
        Secrets([b"too short"])
    assert "too short" not in str(refused.value)
    with pytest.raises(Invalid):
        Secrets([])


def test_a_secret_is_never_shown() -> None:
    secrets = Secrets([OLD, NEW])
    for text in (repr(secrets), repr(secrets.used), str(secrets.ids())):
        assert "secret, long" not in text
        assert secrets.used.id.hex() in text


def test_rotation() -> None:
    secrets = Secrets([OLD])
    old = secrets.used
    new = secrets.add(NEW)
    assert secrets.add(NEW) is new
    assert secrets.ids() == [old.id.hex(), new.id.hex()]
    with pytest.raises(Conflict, match="in use"):
        secrets.remove(old.id)
    assert secrets.use(new.id) is secrets.used is new
    secrets.remove(old.id)
    assert list(secrets) == [new]
    with pytest.raises(NotFound):
        secrets.use(old.id)
    for i in range(7):
        secrets.add(b"yet another long secret %d" % i)
    with pytest.raises(Conflict, match="accepted already"):
        secrets.add(OLD)


def test_a_file_has_a_secret_a_line_the_used_one_first() -> None:
    secrets = Secrets(secret_lines(f"# of the cluster\n\n  {NEW.decode()}  \n{OLD.decode()}\n"))
    assert [s.id for s in secrets] == [Secret(NEW).id, Secret(OLD).id]
