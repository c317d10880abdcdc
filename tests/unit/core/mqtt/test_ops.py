"""The bytes of a session partition's journal, as they were when they were written down."""

import pytest

from headrace.core.mqtt import ops
from headrace.core.mqtt.origins import Origin
from headrace.core.mqtt.subscription import Subscription

WILL = ops.StoredWill(ops.Stored("w", b"gone", 1, True), 5, 60, 7)
MESSAGE = ops.Stored("t", b"x", 2, False, {38: [("k", "v")]}, 99, "me")
TO = ops.To("you", 4, 1, True, (3,), "team")
SHARED = Subscription("$share/team/t/#", "t/#", "team", 2, True, True, 9, (("k", "v"),))
QUEUED = ops.Queued(MESSAGE, [TO], ("b", 12), Origin("me", 1, 0))
GOLDEN: list[tuple[ops.AnyOp, str]] = [
    (ops.Opened("me", 3, 60, True, WILL), "9196a16fa26d65033cc39497a177c404676f6e6501c3c000a0053c07"),
    (ops.Closed("me", 1000, 60, 2000), "9195a163a26d65cd03e83ccd07d0"),
    (ops.Ended("me"), "9192a165a26d65"),
    (ops.WillDone("me"), "9192a177a26d65"),
    (ops.Subscribed("me", SHARED), "9193a173a26d6598af2473686172652f7465616d2f742f23a3742f23a47465616d02c3c3099192a16ba176"),
    (ops.Unsubscribed("me", "t/#"), "9193a175a26d65a3742f23"),
    (QUEUED, "9195a17197a174c4017802c281269192a16ba17663a26d659196a3796f750401c39103a47465616d92a1620c93a26d650100"),
    (ops.Done("me", [4, 5]), "9193a164a26d65920405"),
    (ops.Released("me", 4), "9193a172a26d6504"),
    (ops.Receiving("me", 8, 2), "9194a16ea26d650802"),
    (ops.Received("me", 8), "9193a169a26d6508"),
    (ops.Completed("me", 8), "9193a170a26d6508"),
    (ops.Retained("t", None, ("b", 13)), "9195a174a174c092a1620dc0"),
    (ops.Epoch(5, 7), "9193a1660507"),
]


def test_every_change_is_here() -> None:
    assert {type(op) for op, _ in GOLDEN} == set(ops.AnyOp.__args__)


@pytest.mark.parametrize(("op", "written"), GOLDEN, ids=[type(op).__name__ for op, _ in GOLDEN])
def test_bytes(op: ops.AnyOp, written: str) -> None:
    assert ops.pack([op]).hex() == written
    (read,) = ops.unpack(bytes.fromhex(written))
    assert type(read) is type(op)
    assert ops.pack([read]).hex() == written
