"""Runs a command and turns what goes wrong into two lines and an exit code."""

import errno
import json
import os
import sys
from typing import Final

from headrace.model.errors import HeadraceError

BROKEN_PIPE: Final = 141
OS_ERROR: Final = 74


def run(argv: list[str]) -> int:
    """The exit code of ``headrace ARGV``."""
    from headrace.cli.app import app

    as_json = "--json" in argv
    try:
        code = app(args=argv, prog_name="headrace", standalone_mode=True)
    except HeadraceError as error:
        return failed(error, as_json=as_json)
    except OSError as error:
        return _system(error, as_json=as_json)
    except SystemExit as stop:
        # Typer ends the command where whoever read its output has gone; what is buffered must not complain about that at exit.
        if isinstance(stop.__context__, BrokenPipeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return BROKEN_PIPE
        return stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
    return code if isinstance(code, int) else 0


def failed(error: HeadraceError, *, as_json: bool) -> int:
    """Says what is wrong and what to do, on standard error."""
    if as_json:
        body = {"code": error.code, "error": type(error).__name__, "message": str(error), "hint": error.hint, "retriable": error.retriable}
        print(json.dumps(body), file=sys.stderr)
    else:
        print(f"headrace: {error}", file=sys.stderr)
        if error.hint:
            print(f"  to do: {error.hint}", file=sys.stderr)
    return error.exit


def _system(error: OSError, *, as_json: bool) -> int:
    what = f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror or error)
    todo = {
        errno.EADDRINUSE: "another process listens there: stop it, or choose another address with --listen or --admin (port 0: the system picks)",
        errno.EACCES: "check who owns it and its permissions",
        errno.ENOENT: "check the path",
        errno.ENOSPC: "free space on that disk",
        errno.EMFILE: "raise the limit on open files: ulimit -n 65536",
    }.get(error.errno or 0, "")
    if as_json:
        print(json.dumps({"code": 1, "error": "OSError", "message": what, "hint": todo, "retriable": False}), file=sys.stderr)
    else:
        print(f"headrace: {what}", file=sys.stderr)
        if todo:
            print(f"  to do: {todo}", file=sys.stderr)
    return OS_ERROR
