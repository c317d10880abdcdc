import pytest

from headrace.client.target import parse_target
from headrace.model.errors import Invalid


def test_several_addresses_credentials_and_a_name() -> None:
    target = parse_target("headrace://ann:p%40ss@a.example:7000,b.example,[::1]:7001/?name=till")
    assert target.addresses == (("a.example", 7000), ("b.example", 7580), ("::1", 7001))
    assert (target.user, target.password, target.name) == ("ann", "p@ss", "till")
    assert str(target) == "headrace://a.example:7000,b.example:7580,[::1]:7001"


def test_a_bare_address_will_do() -> None:
    assert parse_target("127.0.0.1").addresses == (("127.0.0.1", 7580),)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "http://x",
        "headrace://",
        "headrace://x:",
        "headrace://x:0x",
        "headrace://x:70000",
        "headrace://[::1",
        "headrace://a,,b",
        "headrace://a?x=1",
        "headrace://a..b:1",
        "headrace://\ud800:1",
    ],
)
def test_what_is_wrong_is_said(url: str) -> None:
    if url == "headrace://x:":
        assert parse_target(url).addresses == (("x", 7580),)
        return
    with pytest.raises(Invalid) as e:
        parse_target(url)
    assert e.value.hint
