"""Filters on a record's key and headers: checked, compiled to closures, and their text form.

Owns what a ``control.Filter`` means. Knows neither queues nor streams. A header that occurs several times matches when one of its values
does. Values are compared as UTF-8 bytes; a glob sees characters (bytes that are no UTF-8 count as one character each).

Invariants: F1 a compiled filter has at most ``FILTER_TERMS_MAX`` plain terms and ``FILTER_DEPTH_MAX`` levels. F2 matching never raises, and
costs at most (length of value) x (length of pattern) a term: a glob's stars never backtrack into one another.

Text form: ``region = eu and (kind ~ "ord*" or exists trace)``. Terms: ``NAME = VALUE``, ``NAME != VALUE``, ``NAME ^= PREFIX``,
``NAME ~ GLOB``, ``NAME !~ GLOB``, ``exists NAME``; joined by ``not``, ``and``, ``or`` (binding in this order) and parentheses. The bare
word ``key`` is the record's key, ``"key"`` in quotes a header of that name. Quoted strings take ``\\"`` and ``\\\\``.
"""

import re
from collections.abc import Callable, Sequence
from typing import Final

from headrace.model import limits
from headrace.model.errors import Invalid
from headrace.wire.control import Filter

Headers = Sequence[tuple[str, bytes]]
Test = Callable[[bytes | None, Headers], bool]
_ValueTest = Callable[[bytes], bool]

_PLAIN: Final = ("eq", "prefix", "glob", "exists")
_JOINS: Final = ("and", "or", "not")


class Compiled:
    """A filter ready for use: ``match(key, headers)``."""

    __slots__ = ("match", "reads_headers", "reads_key", "source")

    def __init__(self, source: Filter, match: Test, *, reads_key: bool, reads_headers: bool) -> None:
        self.source = source
        self.match = match
        self.reads_key = reads_key
        self.reads_headers = reads_headers


def compile(source: Filter) -> Compiled:
    """The compiled form of ``source``, or ``Invalid`` naming everything that is wrong with it."""
    wrong: list[str] = []
    leaves: list[Filter] = []
    _inspect(source, 1, "filter", leaves, wrong)
    if len(leaves) > limits.FILTER_TERMS_MAX:
        wrong.append(f"it has more than {limits.FILTER_TERMS_MAX} terms")
    if wrong:
        raise Invalid("filter: " + "; ".join(wrong[:8]))
    return Compiled(source, _test(source), reads_key=any(not t.header for t in leaves), reads_headers=any(t.header for t in leaves))


def _inspect(term: Filter, depth: int, path: str, leaves: list[Filter], wrong: list[str]) -> None:
    """Notes in ``wrong`` what is not allowed, and in ``leaves`` the plain terms (stops soon after one too many)."""
    if len(leaves) > limits.FILTER_TERMS_MAX or len(wrong) > 8:
        return
    if term.op in _PLAIN:
        leaves.append(term)
        if term.terms:
            wrong.append(f"{path}: {term.op} takes no terms")
        if term.op == "exists" and term.value:
            wrong.append(f"{path}: exists takes no value")
        try:
            nbytes = max(len(term.value.encode()), len(term.header.encode()))
        except UnicodeEncodeError:
            wrong.append(f"{path}: header and value must be valid Unicode")
        else:
            if nbytes > limits.FILTER_VALUE_BYTES_MAX:
                wrong.append(f"{path}: header and value have at most {limits.FILTER_VALUE_BYTES_MAX} bytes in UTF-8")
    elif term.op in _JOINS:
        if term.header or term.value:
            wrong.append(f"{path}: {term.op} takes terms, neither header nor value")
        if not term.terms or (term.op == "not" and len(term.terms) != 1):
            wrong.append(f"{path}: {term.op} takes {'exactly one term' if term.op == 'not' else 'at least one term'}, has {len(term.terms)}")
        if depth >= limits.FILTER_DEPTH_MAX:
            wrong.append(f"{path}: it nests deeper than {limits.FILTER_DEPTH_MAX} levels")
            return
        for number, inner in enumerate(term.terms[: limits.FILTER_TERMS_MAX + 1]):
            _inspect(inner, depth + 1, f"{path}.{term.op}[{number}]", leaves, wrong)
    else:
        wrong.append(f"{path}: op must be one of {', '.join(_PLAIN + _JOINS)}, is {term.op[:40]!r}")


def _test(term: Filter) -> Test:
    if term.op == "not":
        inner = _test(term.terms[0])
        return lambda key, headers: not inner(key, headers)
    if term.op in _JOINS:
        tests = tuple(_test(t) for t in term.terms)
        if len(tests) == 1:
            return tests[0]
        return _all_of(tests) if term.op == "and" else _any_of(tests)
    if term.op == "exists":
        value_test: _ValueTest | None = None
    elif term.op == "glob":
        value_test = _glob(term.value)
    else:
        value_test = _bytes_test(term.op, term.value.encode())
    return _on_header(term.header, value_test) if term.header else _on_key(value_test)


def _all_of(tests: tuple[Test, ...]) -> Test:
    def test(key: bytes | None, headers: Headers) -> bool:
        return all(t(key, headers) for t in tests)

    return test


def _any_of(tests: tuple[Test, ...]) -> Test:
    def test(key: bytes | None, headers: Headers) -> bool:
        return any(t(key, headers) for t in tests)

    return test


def _on_key(value_test: _ValueTest | None) -> Test:
    if value_test is None:
        return lambda key, headers: key is not None
    return lambda key, headers: key is not None and value_test(key)


def _on_header(name: str, value_test: _ValueTest | None) -> Test:
    def test(key: bytes | None, headers: Headers) -> bool:
        return any(header == name and (value_test is None or value_test(value or b"")) for header, value in headers)

    return test


def _bytes_test(op: str, wanted: bytes) -> _ValueTest:
    if op == "eq":
        return lambda value: value == wanted
    return lambda value: value.startswith(wanted)


def _glob(pattern: str) -> _ValueTest:
    search = re.compile(translate(pattern), re.DOTALL).fullmatch
    return lambda value: search(value.decode("utf-8", "surrogateescape")) is not None


def translate(pattern: str) -> str:
    """The regular expression of a glob: ``*`` any run, ``?`` one character, ``[a-z]`` and ``[!a-z]`` one of a set; all else stands for itself.

    Between two stars the shortest match of the fixed piece is always good enough, so each ``star, piece`` is an atomic group that is never
    entered again: without this, stars multiply the cost.
    """
    pieces: list[str] = [""]
    at = 0
    while at < len(pattern):
        char = pattern[at]
        at += 1
        if char == "*":
            if pieces[-1] or len(pieces) == 1:
                pieces.append("")
        elif char == "?":
            pieces[-1] += "."
        elif char == "[":
            text, at = _set(pattern, at)
            pieces[-1] += text
        else:
            pieces[-1] += re.escape(char)
    if len(pieces) == 1:
        return pieces[0]
    middle = "".join(f"(?>.*?{piece})" for piece in pieces[1:-1])
    return f"{pieces[0]}{middle}.*{pieces[-1]}"


def _set(pattern: str, at: int) -> tuple[str, int]:
    """The expression of the set that opened before ``at``, and where the pattern goes on. An unclosed bracket is a plain character."""
    close = pattern.find("]", at + (2 if pattern[at : at + 1] == "!" else 1))
    if close < 0:
        return "\\[", at
    body = pattern[at:close]
    negated = body.startswith("!")
    chars = body[1:] if negated else body
    parts: list[str] = []
    index = 0
    while index < len(chars):
        low = high = chars[index]
        if index + 2 < len(chars) and chars[index + 1] == "-":
            high = chars[index + 2]
            index += 2
        if low <= high:
            parts.append(re.escape(low) if low == high else f"{re.escape(low)}-{re.escape(high)}")
        index += 1
    if not parts:
        return ("." if negated else "(?!)"), close + 1
    return f"[{'^' if negated else ''}{''.join(parts)}]", close + 1


# ---------------------------------------------------------------- the text form

_TOKEN: Final = re.compile(r'\s*(?:(?P<quoted>"(?:[^"\\]|\\.)*")|(?P<symbol>!=|\^=|!~|[=~()])|(?P<word>[^\s"=~()!^]+))', re.DOTALL)
_BARE: Final = re.compile(r'[^\s"=~()!^]+')
_WORDS: Final = frozenset({"and", "or", "not", "exists", "key"})
_OPS: Final = {"=": "eq", "!=": "eq", "^=": "prefix", "~": "glob", "!~": "glob"}
_SIGNS: Final = {"eq": "=", "prefix": "^=", "glob": "~"}


def parse(text: str) -> Filter:
    """The filter that ``text`` describes (see the module's head), checked as by ``compile``, or ``Invalid`` saying where it cannot be read."""
    if len(text) > limits.FILTER_TEXT_CHARACTERS_MAX:
        raise Invalid(f"filter: the text is longer than {limits.FILTER_TEXT_CHARACTERS_MAX} characters")
    found = _Parser(text).whole()
    compile(found)
    return found


def format(source: Filter) -> str:
    """The text form of a valid filter: ``parse(format(f))`` matches what ``f`` matches, and equals it but for joins of a single term."""
    return _text(source, 0)


def _text(term: Filter, binding: int) -> str:
    if term.op == "not":
        return "not " + _text(term.terms[0], 3)
    if term.op in _JOINS:
        if len(term.terms) == 1:
            return _text(term.terms[0], binding)
        mine = 2 if term.op == "and" else 1
        joined = f" {term.op} ".join(_text(t, mine + 1) for t in term.terms)
        return f"({joined})" if binding > mine else joined
    name = _quoted(term.header) if term.header else "key"
    if term.op == "exists":
        return f"exists {name}"
    return f"{name} {_SIGNS[term.op]} {_quoted(term.value)}"


def _quoted(value: str) -> str:
    if _BARE.fullmatch(value) and value not in _WORDS:
        return value
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


class _Parser:
    """Recursive descent over the tokens; the depth of recursion is bounded by ``FILTER_DEPTH_MAX``."""

    __slots__ = ("_at", "_depth", "_tokens")

    def __init__(self, text: str) -> None:
        self._tokens: list[tuple[str, str, int]] = []
        self._at = 0
        self._depth = 0
        pos, end = 0, len(text.rstrip())
        while pos < end:
            found = _TOKEN.match(text, pos)
            if found is None:
                raise Invalid(f"filter: cannot read {text[pos : pos + 20].strip()!r} at character {pos + 1}")
            kind = found.lastgroup or ""
            value = found[kind]
            if kind == "quoted":
                value = re.sub(r"\\(.)", r"\1", value[1:-1], flags=re.DOTALL)
            self._tokens.append((kind, value, found.start(kind) + 1))
            pos = found.end()

    def whole(self) -> Filter:
        found = self._any()
        if self._at < len(self._tokens):
            raise self._unexpected("and, or, or the end")
        return found

    def _any(self) -> Filter:
        return self._joined("or", lambda: self._joined("and", self._single))

    def _joined(self, word: str, part: Callable[[], Filter]) -> Filter:
        terms = [part()]
        while self._take("word", word):
            terms.append(part())
        return terms[0] if len(terms) == 1 else Filter(word, terms=tuple(terms))

    def _single(self) -> Filter:
        self._depth += 1
        if self._depth > limits.FILTER_DEPTH_MAX:
            raise Invalid(f"filter: it nests deeper than {limits.FILTER_DEPTH_MAX} levels")
        try:
            if self._take("word", "not"):
                return Filter("not", terms=(self._single(),))
            if self._take("symbol", "("):
                found = self._any()
                if not self._take("symbol", ")"):
                    raise self._unexpected("a closing parenthesis")
                return found
            if self._take("word", "exists"):
                return Filter("exists", header=self._name())
            return self._comparison()
        finally:
            self._depth -= 1

    def _comparison(self) -> Filter:
        header = self._name()
        kind, sign, _ = self._peek()
        if kind != "symbol" or sign not in _OPS:
            raise self._unexpected("one of = != ^= ~ !~")
        self._at += 1
        kind, value, _ = self._peek()
        if kind not in ("word", "quoted"):
            raise self._unexpected("a value")
        self._at += 1
        term = Filter(_OPS[sign], header=header, value=value)
        return Filter("not", terms=(term,)) if sign.startswith("!") else term

    def _name(self) -> str:
        kind, name, _ = self._peek()
        if (kind == "quoted" and name) or (kind == "word" and name not in _WORDS):
            self._at += 1
            return name
        if kind == "word" and name == "key":
            self._at += 1
            return ""
        raise self._unexpected("the name of a header, or key")

    def _peek(self) -> tuple[str, str, int]:
        return self._tokens[self._at] if self._at < len(self._tokens) else ("end", "", 0)

    def _take(self, kind: str, value: str) -> bool:
        if self._peek()[:2] == (kind, value):
            self._at += 1
            return True
        return False

    def _unexpected(self, wanted: str) -> Invalid:
        kind, value, at = self._peek()
        return Invalid(f"filter: expected {wanted}, found " + ("the end" if kind == "end" else f"{value[:40]!r} at character {at}"))
