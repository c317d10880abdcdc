"""The command line. Each module is a group of commands; what is heavy (event loop, client, broker) is imported by the command that needs it.

Commands ask a broker over the native protocol, as any client does. Every command takes ``--url`` and ``--json``; an error is one line that says what,
one that says what to do, and the exit code of its class.
"""

import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; gives the exit code. Entry point ``headrace``."""
    from headrace.cli.running import run

    return run(sys.argv[1:] if argv is None else list(argv))
