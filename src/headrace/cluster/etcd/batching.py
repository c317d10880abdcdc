"""Transactions that are asked for at the same time go to etcd as one: a transaction of transactions, each with its own comparisons and outcome.

Owns what waits and what may go together. Does not know keys' meaning. A lone transaction is sent as it is, in the turn of the loop in which it came.

I1 those that go together share no key, so their outcomes do not depend on each other or on their order. I2 a request stays below the bounds that
etcd has by default: 128 operations along each path through the nesting, 1 MiB. I3 what depends on a lease goes alone, for a lease that ended fails
the whole request. I4 no more than a few requests are under way; what comes meanwhile gathers.
"""

import asyncio
from collections.abc import Mapping
from typing import Any, Final

from headrace.cluster.coordinator import OPERATION_OVERHEAD_BYTES, REQUEST_BYTES_MAX, TRANSACTION_OPERATIONS_MAX
from headrace.cluster.etcd.calls import Calls, pb
from headrace.model.errors import CoordinatorUnavailable, HeadraceError, UnknownOutcome

TOGETHER_MAX: Final = 32
NESTED_OPERATIONS_MAX: Final = TRANSACTION_OPERATIONS_MAX - TOGETHER_MAX
UNDER_WAY_MAX: Final = 4


class _Waiting:
    __slots__ = ("done", "keys", "nbytes", "request", "together")

    def __init__(self, request: Any, expected: Mapping[str, int], puts: Mapping[str, bytes | None], *, lease: bool) -> None:
        self.request = request
        self.keys = {**dict.fromkeys(expected), **dict.fromkeys(puts)}
        self.nbytes = sum(len(k.encode()) + OPERATION_OVERHEAD_BYTES for k in (*expected, *puts)) + sum(len(v) for v in puts.values() if v)
        self.together = not lease and max(len(expected), len(puts)) <= NESTED_OPERATIONS_MAX
        self.done: asyncio.Future[bool] = asyncio.get_running_loop().create_future()


class Batcher:
    """See the module's head."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._waiting: list[_Waiting] = []
        self._under_way: dict[asyncio.Task[None], None] = {}
        self._awake = False

    async def transact(self, request: Any, expected: Mapping[str, int], puts: Mapping[str, bytes | None], *, lease: bool) -> bool:
        """Whether the comparisons of ``request`` (a transaction of etcd that writes) held."""
        mine = _Waiting(request, expected, puts, lease=lease)
        self._waiting.append(mine)
        self._wake()
        return await mine.done

    def close(self) -> None:
        """Nothing is sent any more; what waits was not."""
        for task in self._under_way:
            task.cancel()
        waiting, self._waiting = self._waiting, []
        for w in waiting:
            if not w.done.done():
                w.done.set_exception(CoordinatorUnavailable("the coordinator's client was closed"))

    def _wake(self) -> None:
        if not self._awake:
            self._awake = True
            asyncio.get_running_loop().call_soon(self._send)

    def _send(self) -> None:
        self._awake = False
        while self._waiting and len(self._under_way) < UNDER_WAY_MAX:
            batch = self._gather()
            if batch:
                task = asyncio.get_running_loop().create_task(self._run(batch))
                self._under_way[task] = None
                task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        del self._under_way[task]
        if self._waiting:
            self._wake()

    def _gather(self) -> list[_Waiting]:
        """Takes the oldest and what may go with it; none that nobody waits for any more."""
        self._waiting = [w for w in self._waiting if not w.done.done()]
        batch, left, keys, nbytes = list[_Waiting](), list[_Waiting](), dict[str, None](), 0
        for w in self._waiting:
            fits = not batch or (
                batch[0].together
                and w.together
                and len(batch) < TOGETHER_MAX
                and nbytes + w.nbytes < REQUEST_BYTES_MAX
                and keys.keys().isdisjoint(w.keys)
            )
            if fits:
                batch.append(w)
                nbytes += w.nbytes
            else:
                left.append(w)
            keys.update(w.keys)  # of those that stay, too: none is overtaken by a later one on the same key
        self._waiting = left
        return batch

    async def _run(self, batch: list[_Waiting]) -> None:
        what = f"a transaction on {next(iter(batch[0].keys))}" + (f" and {len(batch) - 1} more" if len(batch) > 1 else "")
        since = self._calls.seen
        try:
            if len(batch) == 1:
                answer = await self._calls.write("kv.Txn", batch[0].request, what=what)
                outcomes = [bool(answer.succeeded)]
            else:
                request = pb.TxnRequest(success=[pb.RequestOp(request_txn=w.request) for w in batch])
                answer = await self._calls.write("kv.Txn", request, what=what)
                outcomes = [bool(r.response_txn.succeeded) for r in answer.responses]
            self._calls.notice(answer.header, since)
        except HeadraceError as e:
            for w in batch:
                if not w.done.done():
                    w.done.set_exception(type(e)(str(e), hint=e.hint))
        except BaseException:
            for w in batch:
                if not w.done.done():
                    w.done.set_exception(UnknownOutcome("the coordinator's client was closed before the answer came: it may have been done"))
            raise
        else:
            for w, outcome in zip(batch, outcomes, strict=True):
                if not w.done.done():
                    w.done.set_result(outcome)
