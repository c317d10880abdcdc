from datetime import timedelta

import pytest

from headrace.client.payload import decode_headers, decode_json, encode_headers, encode_value, milliseconds
from headrace.model.errors import Invalid, Malformed


def test_values_say_what_they_are() -> None:
    assert encode_value(b"x") == (b"x", ())
    assert encode_value(bytearray(b"x")) == (b"x", ())
    assert encode_value(memoryview(b"x")) == (b"x", ())
    assert encode_value("ü") == ("ü".encode(), (("content-type", b"text/plain; charset=utf-8"),))
    assert encode_value({"a": [1, None]}) == (b'{"a":[1,null]}', (("content-type", b"application/json"),))
    assert encode_value(None) == (None, ())


def test_what_cannot_be_json_is_refused() -> None:
    with pytest.raises(Invalid, match="object"):
        encode_value(object())


def test_reserved_headers_are_refused() -> None:
    assert encode_headers({"a": "b", "c": b"\xff"}) == (("a", b"b"), ("c", b"\xff"))
    with pytest.raises(Invalid, match="origin"):
        encode_headers({"headrace.origin": "x"})


def test_headers_that_are_no_text_are_still_shown() -> None:
    assert decode_headers((("a", b"\xff"), ("b", b"x"))) == {"a": "�", "b": "x"}


def test_a_payload_that_is_no_json_says_so() -> None:
    assert decode_json(None) is None
    with pytest.raises(Malformed):
        decode_json(b"{")


def test_durations() -> None:
    assert milliseconds(None, what="delay") == 0
    assert milliseconds(0.0001, what="delay") == 1
    assert milliseconds(timedelta(seconds=2), what="delay") == 2000
    with pytest.raises(Invalid, match="delay"):
        milliseconds(-1, what="delay")
