"""Clients of the kill test: publishers and consumers over raw connections, which tell a history all that they were promised.

Each runs in a thread of its own, reconnects for ever, and repeats what was not confirmed with the same producer sequence. Nothing here judges.
"""

import random
import threading
from collections.abc import Callable

from headrace.cli.perf_link import Link
from headrace.model.errors import HeadraceError
from headrace.wire import control, frames
from headrace.wire.batch import Record, encode_batch, encode_publish, iter_records
from headrace.wire.frames import Level, Op, Settle, SettleFlag
from tests.chaos.history import Broken, History

Address = Callable[[], str]
"""Waits for the broker and says where it is; "" = the test is over."""
WINDOW = 300
AHEAD = 20_000
PREFETCH = 500


class Worker(threading.Thread):
    """Connects, works until the connection breaks, and again, until told to stop; keeps the failure that ended it."""

    def __init__(self, name: str, address: Address, seed: int) -> None:
        super().__init__(name=name, daemon=True)
        self.address = address
        self.random = random.Random(seed)
        self.stopping = threading.Event()
        self.failure: BaseException | None = None
        self.connects = 0

    def run(self) -> None:
        link: Link | None = None
        while not self.done():
            try:
                url = self.address()
                if not url:
                    return
                link = self.connect(url)
                self.open(link)
                self.connects += 1
                self.work(link)
            except (OSError, HeadraceError) as error:
                self.retry(error)
            except BaseException as error:
                self.failure = error
                return
            finally:
                if link is not None:
                    link.close()

    def retry(self, error: Exception) -> None:
        """A broken connection and a refusal that waiting helps are part of the game; anything else is a failure."""
        if isinstance(error, HeadraceError) and not error.retriable and not isinstance(error, ConnectionError):
            raise Broken(f"{self.name}: {type(error).__name__}: {error}") from error

    def done(self) -> bool:
        """Whether it may end."""
        return self.stopping.is_set()

    def connect(self, url: str) -> Link:
        """A connection, welcomed by the broker."""
        return Link(url, name=self.name)

    def open(self, link: Link) -> None:
        """Asks for what ``work`` needs."""
        raise NotImplementedError

    def work(self, link: Link) -> None:
        """Returns or raises when the connection is of no more use."""
        raise NotImplementedError


class Publishing(Worker):
    """An idempotent producer of one partition, a window unconfirmed; ``stopping`` = no new messages, but those sent get confirmed."""

    def __init__(self, name: str, partition: int, history: History, address: Address, seed: int, *, batch: int, ahead: Callable[[], int]) -> None:
        super().__init__(f"publisher of {name}/{partition}", address, seed)
        self.target, self.partition, self.history, self.batch, self.ahead = name, partition, history, batch, ahead
        self.producer_id = self.random.getrandbits(62)
        self.next = 0
        self.confirmed_upto = 0

    def done(self) -> bool:
        return self.stopping.is_set() and self.confirmed_upto >= self.next

    def open(self, link: Link) -> None:
        link.call(control.OpenPublisher(channel=1, name=self.target, partition=self.partition, producer_id=self.producer_id), control.PublisherOpened)

    def work(self, link: Link) -> None:
        at = self.confirmed_upto
        early: dict[int, int] = {}
        while not self.done():
            out = bytearray()
            while at < self.next or (not self.stopping.is_set() and at - self.confirmed_upto < WINDOW * self.batch and self.ahead() < AHEAD):
                out += self.frame(at)
                at += self.batch
                if at - self.confirmed_upto >= WINDOW * self.batch:
                    break
            if out:
                self.next = max(self.next, at)
                self.history.sent(self.partition, self.next)
                link.socket.sendall(out)
            if at == self.confirmed_upto:
                if self.done():
                    return
                self.stopping.wait(0.01)
                continue
            if not link.receive():
                raise OSError("closed")
            for op, _flags, _channel, correlation, begin, end in link.frames():
                if op == Op.CONFIRM:
                    *_h, count, _level, _duplicate, _r, base = frames.CONFIRM.unpack_from(link.view, begin - 12)
                    first = correlation * self.batch
                    self.history.confirm(self.partition, first, count * self.batch, base)
                    early[first] = first + count * self.batch  # duplicates and new ones of one window may be answered in either order
                    while self.confirmed_upto in early:
                        self.confirmed_upto = early.pop(self.confirmed_upto)
                elif op == Op.PUBLISH_ERROR:
                    raise OSError("refused: " + bytes(link.view[begin + 8 : end]).decode())
                else:
                    link.unasked(op, begin, end)

    def frame(self, sequence: int) -> bytes:
        """The PUBLISH that carries ``batch`` sequences from ``sequence`` on; the same bytes at every try."""
        records = [
            Record(key=None, value=(sequence + i).to_bytes(8, "big") + b"x" * 84, headers=(), timestamp_ms=0, offset_delta=i)
            for i in range(self.batch)
        ]
        data = encode_batch(records, base_timestamp_ms=0, producer_id=self.producer_id, producer_epoch=0, base_sequence=sequence)
        return encode_publish(data, channel=1, correlation=sequence // self.batch, flags=int(Level.QUEUE))


class Consuming(Worker):
    """A consumer of a queue that acknowledges with confirmation, and returns a few messages once."""

    def __init__(self, name: str, history: History, address: Address, seed: int) -> None:
        super().__init__(f"consumer of {name}", address, seed)
        self.target, self.history = name, history
        self.token = self.random.getrandbits(62)
        self.session = ""

    def connect(self, url: str) -> Link:
        return Link(url, name=self.name, session=self.session)

    def open(self, link: Link) -> None:
        link.whole = True
        self.session = link.welcome.session
        request = control.Subscribe(
            channel=1, name=self.target, prefetch=PREFETCH, prefetch_bytes=512 * 1024, resume=self.connects > 0, token=self.token
        )
        link.call(request, control.Subscribed)

    def work(self, link: Link) -> None:
        asked: dict[int, tuple[int, bool, list[tuple[int, int]]]] = {}
        number = 0
        link.socket.settimeout(0.2)
        while not self.stopping.is_set():
            out = bytearray()
            for op, _flags, _channel, correlation, begin, end in link.frames():
                if op == Op.DELIVER:
                    *_h, partition, epoch, attempt, _r, first, base = frames.DELIVER.unpack_from(link.view, begin - 12)
                    blob = bytes(link.view[begin - 12 + frames.DELIVER.size : end])
                    for offset, record, _envelope in iter_records(blob, base, first=first, end=first + correlation):
                        self.history.deliver(partition, offset, int.from_bytes((record.value or b"")[:8], "big"))
                    again = attempt == 1 and self.random.random() < 0.02
                    number += 1
                    asked[number] = (partition, not again, [(first, correlation)])
                    action = int(Settle.RETRY if again else Settle.ACK) | SettleFlag.CONFIRM
                    out += frames.SETTLE.pack(frames.SETTLE.size - 4 + frames.RANGE.size, Op.SETTLE, action, 1, number, partition, epoch, 0)
                    out += frames.RANGE.pack(first, correlation)
                elif op == Op.SETTLED:
                    *_h, _settled, stale = frames.SETTLED.unpack_from(link.view, begin - 12)
                    lost = list(frames.RANGE.iter_unpack(link.view[begin - 12 + frames.SETTLED.size : end])) if stale else []
                    partition, acked, ranges = asked.pop(correlation)
                    if acked:
                        self.history.settle(partition, ranges, lost)
                else:
                    link.unasked(op, begin, end)
            if out:
                link.socket.settimeout(30)
                link.socket.sendall(out)
                link.socket.settimeout(0.2)
            if not link.receive() and "timed out" not in link.closed:
                raise OSError("closed")


class Reading(Worker):
    """A reader of a whole stream partition, from the first offset it has not seen."""

    def __init__(self, name: str, history: History, address: Address, seed: int) -> None:
        super().__init__(f"reader of {name}", address, seed)
        self.target, self.history = name, history
        self.position = 0

    def open(self, link: Link) -> None:
        link.whole = True
        request = control.SubscribeStream(
            channel=1, name=self.target, start="earliest", starts={0: self.position}, auto_commit=True, prefetch=5000, prefetch_bytes=512 * 1024
        )
        link.call(request, control.Subscribed)

    def work(self, link: Link) -> None:
        link.socket.settimeout(0.2)
        while not self.stopping.is_set():
            records = nbytes = 0
            for op, _flags, _channel, correlation, begin, end in link.frames():
                if op == Op.DELIVER:
                    *_h, _partition, _epoch, _attempt, _r, first, base = frames.DELIVER.unpack_from(link.view, begin - 12)
                    if first != self.position:
                        raise Broken(f"{self.name}: expected offset {self.position}, got {first}")
                    blob = bytes(link.view[begin - 12 + frames.DELIVER.size : end])
                    for offset, record, _envelope in iter_records(blob, base, first=first, end=first + correlation):
                        self.history.deliver(0, offset, int.from_bytes((record.value or b"")[:8], "big"))
                    self.position = first + correlation
                    records += correlation
                    nbytes += len(blob)
                else:
                    link.unasked(op, begin, end)
            if records:
                link.write(frames.CREDIT.pack(frames.CREDIT.size - 4, Op.CREDIT, 0, 1, 0, records, nbytes))
            if not link.receive() and "timed out" not in link.closed:
                raise OSError("closed")
