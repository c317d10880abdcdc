"""Documents that are generated from the code: writes them, or with ``--check`` says which are out of date (exit 1)."""

import argparse
import importlib
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

GENERATED = {
    "docs/configuration.md": "headrace.config:reference",
    "docs/cli.md": "headrace.cli.reference:reference",
    "docs/mqtt-conformance.md": "mqtt_clauses:table",
}
"""Document: the function without arguments that returns its whole text."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing")
    check = parser.parse_args().check
    stale = []
    for document, source in GENERATED.items():
        module, _, name = source.partition(":")
        generate: Callable[[], str] = getattr(importlib.import_module(module), name)
        path, text = ROOT / document, generate()
        if path.exists() and path.read_text() == text:
            continue
        stale.append(document)
        if not check:
            path.write_text(text)
    if stale:
        print(f"{'out of date' if check else 'written'}: {', '.join(stale)}" + ("; run `make fmt`" if check else ""))
    return 1 if stale and check else 0


if __name__ == "__main__":
    sys.exit(main())
