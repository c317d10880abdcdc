"""docs/cli.md is what the commands say of themselves."""

from pathlib import Path

from headrace.cli.reference import reference

ROOT = Path(__file__).parents[2]


def test_the_page_is_current() -> None:
    assert (ROOT / "docs/cli.md").read_text() == reference(), "run `make fmt`"


def test_every_option_says_what_it_is() -> None:
    rows = [line for line in reference().splitlines() if line.startswith("| `-")]
    assert len(rows) > 100
    undocumented = [row for row in rows if row.split("|")[-2].strip() == ""]
    assert all("perf" not in row for row in undocumented)
