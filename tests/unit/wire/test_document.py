"""docs/protocol.md says what the code does."""

import re
from pathlib import Path

from headrace.model.errors import BY_CODE
from headrace.wire import document, egress
from headrace.wire.frames import PREAMBLE, DeliverFlag, Level, Op, PublishFlag, Settle, SettleFlag
from tests.golden.make_wire import control_types, vectors

TEXT = (Path(__file__).resolve().parents[3] / "docs" / "protocol.md").read_text(encoding="utf-8")


def test_generated_tables_are_up_to_date() -> None:
    assert document.renewed(TEXT) == TEXT, "python -m headrace.wire.document docs/protocol.md"


def test_every_control_message_and_error_is_there() -> None:
    for kind in control_types():
        assert f"**`{kind.__struct_config__.tag}`**" in TEXT
    for code, error in BY_CODE.items():
        assert f"| {code} | {error.__name__} |" in TEXT


def test_every_opcode_flag_and_level_is_there() -> None:
    for op in Op:
        assert f"| {op:#04x} | {op.name} |" in TEXT
    for level in Level:
        assert f"| {int(level)} | {level.name} |" in TEXT
    flags = [*Settle, *SettleFlag, *DeliverFlag]
    for flag in flags:
        assert flag.name == "ACTION_MASK" or f"| {int(flag):#04x} | {flag.name} |" in TEXT
    assert int(PublishFlag.STAMPED) == 1 << 7
    assert "STAMPED" in TEXT
    assert PREAMBLE.hex(" ") in TEXT


def test_every_request_has_its_reply() -> None:
    table = TEXT.split("| request | reply |")[1].split("\n\n")[0]
    named = set(re.findall(r"`([a-z_.]+)`", table))
    assert named == {str(k.__struct_config__.tag) for k in control_types() if not str(k.__struct_config__.tag).startswith(("event.", "failure"))}


def test_the_worked_example() -> None:
    blocks = re.findall(r"```\n(.*?)```", TEXT, re.DOTALL)
    publish, confirm = ("".join([line[:39].split("  ")[0].replace(" ", "") for line in block.splitlines()]) for block in blocks)
    assert publish == vectors()["publish.one"].hex()
    assert confirm == egress.confirm(1, 7, 1, 2, 100).hex()
