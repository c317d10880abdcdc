import asyncio
from typing import Any

import pytest

from headrace.client.answers import Answers, ignore, resolving
from headrace.model.errors import ConnectionLost, HeadraceError, Malformed, NotConnected, NotFound
from headrace.wire import control, egress
from headrace.wire.frames import HEADER

Told = list[tuple[Any, HeadraceError | None]]


def asked(answers: Answers, told: Told) -> int:
    correlation, body = answers.asked(control.Status(), lambda reply, error: told.append((reply, error)))
    assert HEADER.unpack_from(body)[4] == correlation
    assert control.decode_request(body[HEADER.size :]) == control.Status()
    return correlation


def failure() -> bytes:
    return egress.failure(1, NotFound("no such queue"))[HEADER.size :]


def test_each_answer_finds_who_asked_once() -> None:
    answers, first, second = Answers(), Told(), Told()
    one, two = asked(answers, first), asked(answers, second)
    assert answers.answered(two, control.encode(control.Done(count=2)), False) is None
    assert answers.answered(one, failure(), True) is None
    assert second == [(control.Done(count=2), None)]
    assert [(reply, type(error)) for reply, error in first] == [(None, NotFound)]
    assert answers.answered(two, control.encode(control.Done()), False) is None
    assert len(second) == 1
    assert not len(answers)


def test_an_answer_that_cannot_be_read_is_an_error_of_its_request_alone() -> None:
    answers, told = Answers(), Told()
    assert answers.answered(asked(answers, told), b"?", False) is None
    assert [type(error) for _, error in told] == [Malformed]


def test_an_error_that_answers_nothing_is_about_the_link() -> None:
    answers = Answers()
    assert isinstance(answers.answered(0, failure(), True), NotFound)
    assert answers.answered(7, control.encode(control.Done()), False) is None


def test_what_waits_when_the_link_is_lost_is_told_and_ids_go_on() -> None:
    answers, told = Answers(), Told()
    before = asked(answers, told)
    answers.lost(NotConnected("gone"))
    assert [type(error) for _, error in told] == [ConnectionLost]
    after = asked(answers, told)
    assert after != before
    answers.answered(before, control.encode(control.Done()), False)
    assert len(told) == 1


def test_who_is_forgotten_hears_nothing() -> None:
    answers, told = Answers(), Told()
    correlation = asked(answers, told)
    answers.forget(correlation)
    asked(answers, told)
    answers.clear()
    answers.lost(NotConnected("gone"))
    assert not told


async def test_a_future_takes_an_answer_unless_nobody_waits_for_it() -> None:
    done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    resolving(done)("reply", None)
    assert await done == "reply"
    resolving(done)(None, NotFound("too late"))
    refused: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    resolving(refused)(None, NotFound("no such queue"))
    with pytest.raises(NotFound):
        await refused
    ignore(None, None)
