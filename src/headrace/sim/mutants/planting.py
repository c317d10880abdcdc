"""Planting a bug: a piece of a function's source is exchanged, the result compiled, and its code put in the place of the function's own.

Owns the exchange and the way back. Knows no bug. The function object stays what it is, so that every name it was imported under runs the new code,
and nothing in the product has a switch for it.

I1 A piece stands in its function exactly once, else planting fails: a mutant whose function was changed is noticed, not skipped. I2 After ``plant``
has ended every function has the very code object that it had. I3 Only bodies change: a function's arguments and what it closes over stay.
"""

import __future__

import importlib
import inspect
import linecache
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from types import CodeType, FunctionType
from typing import Any, Final, Literal, NamedTuple

import msgspec

from headrace.sim.scenario import FaultKind

Net = Literal["runs", "images", "clusters", "mqtt"]
DEATHS: Final[tuple[FaultKind, ...]] = ("power", "kill")
FLIPS: Final[tuple[FaultKind, ...]] = ("flip", "stop", "flip")
"""For ``Mutant.stir``: few different ones, as the sound product has to pass each of them too."""
ANNOTATIONS: Final = __future__.annotations.compiler_flag
KIND: Final = inspect.CO_VARARGS | inspect.CO_VARKEYWORDS | inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR


class Unplantable(Exception):
    """The product is not what the mutant was written for."""


class Edit(NamedTuple):
    """In the function at ``place`` (``storage.wal:Wal._written``, below ``headrace``) ``new`` stands in the place of ``old``.

    Further lines of both are indented as in the function, counted from the line in which ``old`` begins."""

    place: str
    old: str
    new: str


class Mutant(msgspec.Struct, frozen=True, kw_only=True):
    """A known bug."""

    name: str
    wrong: str
    """What it does, in one sentence."""
    notices: tuple[str, ...]
    """The promises that it breaks: any of them may be the one that is seen."""
    edits: tuple[Edit, ...]
    net: Net = "runs"
    """``images``: whole runs hardly ever meet the moment in which it shows; crash images of the store meet every moment. ``clusters``:
    it takes several brokers; ``mqtt``: and MQTT clients."""
    stir: tuple[FaultKind, ...] = ()
    """Faults that it needs and that few runs have: each run gets them besides its own."""
    wants: tuple[str, ...] = ()
    """Features of a plan, likewise (``plan.draw``)."""

    @contextmanager
    def plant(self) -> Iterator[None]:
        """The product has this bug meanwhile."""
        mutated = compiled(self)
        before = [(function, function.__code__) for function, _ in mutated]
        try:
            for function, code in mutated:
                function.__code__ = code
            yield
        finally:
            for function, code in before:
                function.__code__ = code


@cache
def compiled(mutant: Mutant) -> list[tuple[FunctionType, CodeType]]:
    """Its functions, each once, with the code that they will have; changes nothing. Kept, as the files may be edited while it is planted again."""
    sources: dict[str, str] = {}
    functions: dict[str, FunctionType] = {}
    for edit in mutant.edits:
        function = functions.setdefault(edit.place, function_at(edit.place))
        source = sources.get(edit.place) or textwrap.dedent(inspect.getsource(function))
        sources[edit.place] = _exchanged(mutant.name, edit, source)
    return [(function, _code(mutant.name, place, function, sources[place])) for place, function in functions.items()]


def function_at(place: str) -> FunctionType:
    """The plain function behind a name: of a method, a property's getter, a static method, or what a decorator has wrapped."""
    module, _, path = place.partition(":")
    found: Any = importlib.import_module(f"headrace.{module}")
    for name in path.split("."):
        found = inspect.getattr_static(found, name)
    if isinstance(found, property):
        found = found.fget
    if isinstance(found, (staticmethod, classmethod)):
        found = found.__func__
    found = inspect.unwrap(found)
    if not isinstance(found, FunctionType):
        raise Unplantable(f"{place} is {found!r}, not a function in Python; a compiled installation cannot be mutated")
    return found


def places(mutant: Mutant) -> list[tuple[FunctionType, range]]:
    """Its functions with the numbers of the lines that its edits are about, in the product as it is."""
    found = []
    for edit in mutant.edits:
        function = function_at(edit.place)
        source = textwrap.dedent(inspect.getsource(function))
        begin, end, _ = _found(mutant.name, edit, source)
        first = function.__code__.co_firstlineno + source.count("\n", 0, begin)
        found.append((function, range(first, first + source.count("\n", begin, end) + 1)))
    return found


def _found(name: str, edit: Edit, source: str) -> tuple[int, int, str]:
    """Begin and end of what an edit replaces, and the indentation there."""
    first, *rest = edit.old.split("\n")
    found: list[tuple[int, int, str]] = []
    at = source.find(first)
    while at >= 0:
        line = source[source.rfind("\n", 0, at) + 1 : at]
        indent = line[: len(line) - len(line.lstrip())]
        whole = "\n".join([first, *(indent + text if text else text for text in rest)])
        if source.startswith(whole, at):
            found.append((at, at + len(whole), indent))
        at = source.find(first, at + 1)
    if len(found) != 1:
        raise Unplantable(f"mutant {name}: {edit.old!r} stands {len(found)} times in {edit.place}, not once")
    return found[0]


def _exchanged(name: str, edit: Edit, source: str) -> str:
    begin, end, indent = _found(name, edit, source)
    head, *more = edit.new.split("\n")
    return source[:begin] + "\n".join([head, *(indent + text if text else text for text in more)]) + source[end:]


def _code(name: str, place: str, function: FunctionType, source: str) -> CodeType:
    """The compiled function. It is compiled within another one that has the names it closes over (``__class__`` of ``super()``)."""
    old = function.__code__
    closed = "".join(f"    {variable} = None\n" for variable in old.co_freevars)
    file = f"<mutant {name}: {place}>"
    text = f"def enclosing():\n{closed}{textwrap.indent(source, '    ')}"
    try:
        module = compile(text, file, "exec", flags=ANNOTATIONS, dont_inherit=True)
    except SyntaxError as e:
        raise Unplantable(f"mutant {name}: {place} cannot be compiled: {e}\n{text}") from e
    enclosing = next(c for c in module.co_consts if isinstance(c, CodeType))
    code = next(c for c in enclosing.co_consts if isinstance(c, CodeType) and c.co_name == old.co_name)
    same = ("co_argcount", "co_kwonlyargcount", "co_posonlyargcount", "co_freevars")
    changed = [f"{what}: {getattr(old, what)}, now {getattr(code, what)}" for what in same if getattr(old, what) != getattr(code, what)]
    if (old.co_flags ^ code.co_flags) & KIND:
        changed.append("a generator, a coroutine or neither")
    if changed:
        raise Unplantable(f"mutant {name}: {place} is another kind of function: {', '.join(changed)}")
    linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)
    return code.replace(co_qualname=old.co_qualname)
