"""Which member of which declared cluster a broker's configuration makes it: from a file, a table or a list of voters.

Owns where the config is read and what is wrong with it as a whole. A mistake does not end the broker: it waits, says what is wrong, and never forms
or goes on as something else than was meant.
"""

import re
import socket
from pathlib import Path
from typing import Final

import msgspec

from headrace.cluster.formation.addresses import mistakes as of_ports
from headrace.core.formation.parsing import TEXT_CHARACTERS_MAX, Mistake, Parsed, parse, parse_text, parse_voters
from headrace.core.formation.records import Records
from headrace.model.config import Config
from headrace.model.errors import Invalid
from headrace.model.formation import NAME_PATTERN, RESET, Declared

_NAME: Final = re.compile(NAME_PATTERN)


class Declaring(msgspec.Struct, frozen=True, kw_only=True):
    """``config`` None: there is none, or there are mistakes. ``setting``: where it was declared, "" = nowhere."""

    config: Declared | None = None
    setting: str = ""
    source: str = ""
    """For people: the file, or the setting."""
    mistakes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def member_name(config: Config) -> str:
    """Which member this broker is: ``broker.name``, else its host's name. ``Invalid`` if that can be none."""
    name = config.broker.name or socket.gethostname()
    if not _NAME.fullmatch(name) or name == RESET:
        what = "broker.name" if config.broker.name else "this host's name"
        raise Invalid(f"{what} {name!r} is no name of a member of a cluster", hint="set broker.name: letters, digits, dots, hyphens, at most 63")
    return name


def read(config: Config) -> Declaring:
    """Blocks for as long as the file takes."""
    cluster = config.cluster
    if cluster.file:
        setting, source, parsed = "cluster.file", cluster.file, _file(cluster.file)
    elif cluster.voters:
        setting, source, parsed = "cluster.voters", "cluster.voters", parse_voters(",".join(cluster.voters))
    elif cluster.declared:
        setting, source, parsed = "cluster.declared", "cluster.declared", parse(cluster.declared)
    else:
        return Declaring()
    wrong = parsed.mistakes
    if parsed.config is not None:
        wrong = of_ports(parsed.config)
    texts = tuple(f"{source}: {mistake}" for mistake in wrong)
    return Declaring(config=None if wrong else parsed.config, setting=setting, source=source, mistakes=texts, warnings=parsed.warnings)


def known(records: Records) -> tuple[Declared, ...]:
    """The configs that are on the disk, what the cluster has committed first."""
    configs = (
        records.applied.charter.config if records.applied is not None else None,
        records.acceptance.bootstrap.config if records.acceptance is not None else None,
        records.held.config if records.held is not None else None,
    )
    return tuple(c for c in configs if c is not None)


def _file(path: str) -> Parsed:
    try:
        with Path(path).open(encoding="utf-8") as file:
            text = file.read(TEXT_CHARACTERS_MAX + 1)
    except OSError as e:
        return Parsed(mistakes=(Mistake("", f"cannot be read: {e.strerror or e}"),))
    except UnicodeDecodeError as e:
        return Parsed(mistakes=(Mistake("", f"is not UTF-8 text: {e.reason} at byte {e.start}"),))
    return parse_text(text)
