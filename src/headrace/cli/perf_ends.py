"""The two ends of a measured run: frames encoded before into a connection, deliveries taken by their heads and acknowledged in ranges.

Owns the accounting of one connection. Does not know when to run nor for how long. A publish costs a share of one ``send``, a confirm a share of one
unpack.

Invariants: a frame is queued at most once per turn of the ring and never while its last turn is unconfirmed (window < ring); every confirm is matched
against what was sent, every base offset and every delivered range against what came before.
"""

from collections import deque

from headrace.cli.perf_histogram import Histogram
from headrace.cli.perf_link import Link
from headrace.cli.perf_plan import Plan, Ring
from headrace.wire import frames
from headrace.wire.frames import Level, Op, Settle, SettleFlag

SEND_BYTES = 256 * 1024
SETTLE_RANGES = 1024
CONFIRM_BYTE = bytes([Op.CONFIRM])
LENGTH_BYTE = bytes([frames.CONFIRM.size - 4])


class Publisher:
    """Frames of a ring into one connection, a window unconfirmed."""

    def __init__(self, link: Link, ring: Ring, plan: Plan, channels: int, rate: float) -> None:
        self.link, self.ring = link, ring
        self.window = max(1, min(plan.window // plan.batch, ring.count - 1))
        self.silent = plan.level == Level.NONE
        self.alone = plan.connections == 1
        self.frames_a_ns = rate / plan.batch / 1e9
        self.queued = self.confirmed = self.refused = self.misorder = self.gaps = self.dup = 0
        self.accounted = 0
        """Frames whose latency was counted."""
        self.sent_bytes = 0
        self.blocked = False
        self.began_ns = 0
        self.marks: deque[tuple[int, int]] = deque()
        """(frames queued up to here, when or when due); one channel."""
        self.times: list[int] = [0] * ring.count if channels > 1 else []
        self.answered: dict[int, int] = {}
        """Frames that the confirms at hand answer, by when they were queued or due."""
        self.next_offset: dict[int, int] = {}
        self.born: deque[tuple[int, int]] | None = None
        self.latency = Histogram()
        self.why = ""

    @property
    def waiting(self) -> int:
        """Frames without an answer."""
        return self.queued - self.confirmed - self.refused

    def pump(self, now_ns: int, most: int) -> None:
        """Queues at most ``most`` frames, as the window and the rate allow, and sends what the socket takes."""
        n = min(self.window - self.waiting, most)
        if self.frames_a_ns:
            n = min(n, int((now_ns - self.began_ns) * self.frames_a_ns) + 1 - self.queued)
        if n > 0 and not self.blocked:
            at, ring = self.queued % self.ring.count, self.ring.count
            self.queued += n
            if self.silent:
                self.confirmed += n
            elif self.times:
                for first, last in ((at, min(at + n, ring)), (0, max(0, at + n - ring))):
                    self.times[first:last] = [now_ns] * (last - first)
            elif self.frames_a_ns:
                for k in range(self.queued - n, self.queued):
                    self.marks.append((k + 1, self.began_ns + int(k / self.frames_a_ns)))
            else:
                self.marks.append((self.queued, now_ns))
            if self.born is not None:
                self.born.append((self.queued * self.ring.messages, now_ns))
        self.push()

    def push(self) -> None:
        """Sends queued frames until the socket takes no more."""
        ring, size = self.ring.data, self.ring.nbytes
        target = self.queued * self.ring.frame_bytes
        send = self.link.socket.send
        try:
            while left := target - self.sent_bytes:
                at = self.sent_bytes % size
                self.sent_bytes += send(ring[at : at + min(left, size - at, SEND_BYTES)])
            self.blocked = False
        except BlockingIOError:
            self.blocked = True
        except OSError as error:
            self.link.closed = str(error)

    def due_ns(self) -> int:
        """When the next paced frame is due."""
        return self.began_ns + int(self.queued / self.frames_a_ns)

    def take_confirms(self, now_ns: int) -> None:
        """Matches the CONFIRMs at the head of what was read, as long as nothing else comes: with many channels there is one a message."""
        link, size = self.link, frames.CONFIRM.size
        n = (link.end - link.start) // size
        if not n:
            return
        part = link.view[link.start : link.start + n * size]
        same = bytes(part[4::size]).lstrip(CONFIRM_BYTE), bytes(part[3::size]).lstrip(LENGTH_BYTE)
        n -= max(map(len, same))
        link.start += n * size
        for _l, _o, _f, channel, first, count, _level, duplicate, _r, base in frames.CONFIRM.iter_unpack(part[: n * size]):
            self.on_confirm(channel, first, count, duplicate, base)
        for then, count in self.answered.items():
            self.latency.add(now_ns - then, count)
        self.answered.clear()

    def on_confirm(self, channel: int, first: int, count: int, duplicate: int, base: int) -> None:
        """Matches one CONFIRM against what is out; ``answered`` says how many frames of which time it answers."""
        if count > self.queued - self.confirmed - self.refused:
            self.dup += count
            return
        if duplicate:
            self.dup += count
        expected = self.next_offset.get(channel, base)
        if base != expected:
            if base < expected:
                self.dup += 1
            elif self.alone:
                self.gaps += 1
        self.next_offset[channel] = base + count * self.ring.messages
        answered = self.answered
        if self.times:
            times, ring = self.times, self.ring
            for i in range(count):
                k = ring.place(channel, (first + i) % ring.frames) if ring.stride > 1 else (first + i) % ring.frames * ring.channels + channel - 1
                if then := times[k]:
                    answered[then] = answered.get(then, 0) + 1
                    times[k] = 0
                else:
                    self.misorder += 1
            self.confirmed += count
            return
        if first != (self.confirmed + self.refused) % self.ring.count:
            self.misorder += 1
        self.confirmed += count
        self._pass_marks(latency=True)

    def on_refused(self, channel: int, first: int, at: int, end: int) -> None:
        """Counts one PUBLISH_ERROR and keeps the first reason."""
        *_h, count, code, _r = frames.PUBLISH_ERROR.unpack_from(self.link.view, at - 12)
        self.refused += count
        if not self.why:
            self.why = f"{code}: " + bytes(self.link.view[at - 12 + frames.PUBLISH_ERROR.size : end]).decode("utf-8", "replace")
        if self.times:
            for i in range(count):
                self.times[self.ring.place(channel, (first + i) % self.ring.frames)] = 0
        else:
            self._pass_marks(latency=False)

    def _pass_marks(self, *, latency: bool) -> None:
        done, marks, answered = self.confirmed + self.refused, self.marks, self.answered
        while marks and self.accounted < done:
            upto, then = marks[0]
            reach = min(upto, done)
            if latency:
                answered[then] = answered.get(then, 0) + reach - self.accounted
            self.accounted = reach
            if reach == upto:
                marks.popleft()


class Consumer:
    """Deliveries of one connection, acknowledged in ranges as they come."""

    def __init__(self, link: Link, plan: Plan) -> None:
        self.link, self.plan = link, plan
        self.acks = plan.kind == "queue" and not plan.auto_ack
        self.delivered = self.redelivered = self.misorder = 0
        self.settled = self.stale = 0
        self.blob_bytes = 0
        self.runs: dict[tuple[int, int], list[list[int]]] = {}
        """Per (channel, partition): [first, end) runs in the order they came."""
        self.pending: dict[tuple[int, int, int], list[list[int]]] = {}
        """Per (channel, partition, epoch): ranges to acknowledge."""
        self.credit: dict[int, list[int]] = {}
        self.born: deque[tuple[int, int]] | None = None
        self.latency = Histogram()

    def on_deliver(self, flags: int, channel: int, records: int, at: int, end: int, now_ns: int) -> None:
        """Accounts for one DELIVER by its head."""
        *_h, partition, epoch, attempt, _r, first, _base = frames.DELIVER.unpack_from(self.link.view, at - 12)
        length = frames.HEADER.unpack_from(self.link.view, at - 12)[0] - frames.DELIVER.size + 4
        self.delivered += records
        self.blob_bytes += length
        if attempt > 1:
            self.redelivered += records
        runs = self.runs.setdefault((channel, partition), [])
        if runs and runs[-1][1] == first:
            runs[-1][1] += records
        else:
            if runs and first < runs[-1][1] and attempt <= 1:
                self.misorder += 1
            runs.append([first, first + records])
        if self.acks:
            ranges = self.pending.setdefault((channel, partition, epoch), [])
            if ranges and ranges[-1][1] == first:
                ranges[-1][1] += records
            else:
                ranges.append([first, first + records])
        elif self.plan.kind == "stream" or self.plan.auto_ack:
            credit = self.credit.setdefault(channel, [0, 0])
            credit[0] += records
            credit[1] += length
        born, reach = self.born, first + records
        while born:
            upto, then = born[0]
            self.latency.add(now_ns - then, min(upto, reach) - first)
            if upto > reach:
                break
            first = upto
            born.popleft()

    def acknowledge(self, *, confirm: bool = False) -> None:
        """Sends what is to be acknowledged, or the credit that was used up."""
        out = bytearray()
        if self.pending:
            flags = int(Settle.ACK) | (SettleFlag.CONFIRM if confirm else 0)
            for (channel, partition, epoch), ranges in self.pending.items():
                for at in range(0, len(ranges), SETTLE_RANGES):
                    part = ranges[at : at + SETTLE_RANGES]
                    body = b"".join(frames.RANGE.pack(first, end - first) for first, end in part)
                    out += frames.SETTLE.pack(frames.SETTLE.size - 4 + len(body), Op.SETTLE, flags, channel, 1, partition, epoch, 0) + body
            self.pending = {}
        if self.credit:
            for channel, (messages, nbytes) in self.credit.items():
                out += frames.CREDIT.pack(frames.CREDIT.size - 4, Op.CREDIT, 0, channel, 0, messages, nbytes)
            self.credit = {}
        if out:
            self.link.write(bytes(out))

    def on_settled(self, at: int) -> None:
        """Counts one SETTLED; what is stale was not ours any more."""
        *_h, settled, stale = frames.SETTLED.unpack_from(self.link.view, at - 12)
        self.settled += settled
        self.stale += stale
