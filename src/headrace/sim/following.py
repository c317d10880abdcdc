"""Clients that carry on by themselves while the brokers of their cluster die, are cut off, hand over and come back.

Owns the clients: one of each kind for the whole run, each told of all brokers once. The cluster, the faults and what is kept of messages are those of
``sim.clustered``.

F1 Whatever was posted is confirmed in bounded time after all is healed, without being posted again. F2 It is stored once. F3 Confirms of one
publisher to a partition name ascending offsets in the order in which its messages were posted. F4 One reader is handed every offset of a partition
once, in order. F5 One consumer is handed everything, and nothing after its ack was confirmed. K1 to K7 of ``sim.clustered`` hold too.
"""

import asyncio
import sys
from contextlib import suppress
from functools import partial

import headrace
from headrace.client.client import Client
from headrace.client.lane import Receipt
from headrace.model.errors import HeadraceError, StaleSettle
from headrace.sim.clustered import HEALED_S, Book, Run, Totals
from headrace.sim.loop import Machine
from headrace.sim.world import PORT

CONFIRM_S = 600.0
"""Longer than everything that goes wrong."""
LEASE_S = 300.0
"""Nothing that is here unsettled is given to others meanwhile, as long as who has it is known again."""
LOOK_S = 1.0


class Following(Run):
    """See the module's head."""

    async def client(self, machine: Machine) -> Client:
        """Of all brokers, whichever of them is there."""
        names = list(self.names)
        self.load.shuffle(names)
        url = "headrace://" + ",".join(f"{name}:{PORT}" for name in names)
        return await headrace.connect(url, name=machine.name, wait=60.0, confirm_timeout=CONFIRM_S, request_timeout=60.0)

    async def publish(self, machine: Machine, book: Book, partition: int) -> None:
        client = await self.client(machine)
        publisher = client.publisher(book.name)
        posted: list[tuple[int, asyncio.Future[Receipt]]] = []
        while not self.healing:
            size = self.load.choice([10, 100, 3000])
            for _ in range(self.load.randint(1, 5)):
                await publisher.room()
                self.numbers += 1
                book.sent[self.numbers] = False
                posted.append((self.numbers, publisher.post((b"%d " % self.numbers).ljust(size, b"."), partition=partition)))
                posted[-1][1].add_done_callback(partial(self.confirmed, book, self.numbers))
            await asyncio.sleep(self.load.between(*self.rests_s))
        if posted:
            await asyncio.wait([future for _, future in posted])
        last = -1
        for number, future in posted:
            if future.exception() is None:
                receipt = future.result()
                if receipt.offset <= last:
                    self.broken.append(f"F3 {number} of {book.name} is confirmed at {receipt.offset}, and what was posted before it at {last}")
                last = receipt.offset
        await client.close()

    def confirmed(self, book: Book, number: int, done: "asyncio.Future[Receipt]") -> None:
        if done.cancelled():
            return
        error = done.exception()
        if error is not None:
            self.totals.unconfirmed += 1
            if not self.over:
                self.broken.append(f"F1 {number} of {book.name} was not confirmed: {error!r}")
            return
        receipt = done.result()
        book.sent[number] = True
        self.totals.confirmed += 1
        self.at_one_place(book, receipt.partition, receipt.offset, number)

    def at_one_place(self, book: Book, partition: int, offset: int, number: int) -> None:
        known = book.offsets.setdefault(number, (partition, offset))
        if known != (partition, offset):
            self.broken.append(f"F2 {number} of {book.name} is at {known} and at {(partition, offset)}")
        if book.kind == "stream":
            self.seen(book, partition, offset, number, "somebody")

    async def consume(self, machine: Machine, book: Book, partition: int) -> None:
        """Everything of the queue; ``partition`` is only who is counted."""
        client = await self.client(machine)
        while not self.over:
            with suppress(HeadraceError):
                if await client.list(book.name):
                    break
            await asyncio.sleep(LOOK_S)  # the queue of dead letters comes with the first of them
        async with client.consume(book.name, prefetch=20, lease=LEASE_S) as consumer:
            while not self.over:
                try:
                    async with asyncio.timeout(LOOK_S):
                        message = await consumer.__anext__()
                except TimeoutError:
                    continue
                number = int(message.value.split()[0])
                if number not in book.sent:
                    self.broken.append(f"K2 {number} was delivered from {book.name} and nobody sent it")
                if message.attempt >= book.acked.get(number, message.attempt + 1):  # an earlier one may have been on its way
                    self.broken.append(f"F5 {number} was delivered from {book.name} after its ack was confirmed")
                self.at_one_place(book, message.partition, message.offset, number)
                rejected = book.name == "orders" and self.load.happens(0.1)
                if rejected:
                    self.books["dead"].sent.setdefault(number, False)
                with suppress(StaleSettle):  # it comes again, or an ack that was under way counted
                    await (message.reject(confirmed=True) if rejected else message.ack(confirmed=True))
                    book.acked[number] = message.attempt
                    self.totals.acked += 1
                    if rejected:
                        self.books["dead"].sent[number] = True
                        self.totals.rejected += 1
                    continue
                book.acking[number] = True
        await client.close()

    async def read(self, machine: Machine, book: Book, partition: int) -> None:
        """One reader for the whole run, of all partitions."""
        if partition:
            return
        client = await self.client(machine)
        expected = dict.fromkeys(range(self.partitions), 0)
        async with client.read(book.name, start="earliest") as reader:
            while not self.over:
                try:
                    async with asyncio.timeout(LOOK_S):
                        record = await reader.__anext__()
                except TimeoutError:
                    continue
                if record.offset != expected[record.partition]:
                    self.broken.append(f"F4 {record.partition}/{record.offset} of {book.name} is read, {expected[record.partition]} was to be next")
                expected[record.partition] = record.offset + 1
                number = int(record.value.split()[0])
                self.at_one_place(book, record.partition, record.offset, number)
                book.delivered[number] = True
                self.totals.read += 1
        await client.close()

    @staticmethod
    def late(book: Book) -> list[int]:
        """Posted and not confirmed yet; a dead letter is posted by nobody."""
        return [m for m, confirmed in book.sent.items() if not confirmed and book.name != "dead"]

    def awaited(self, book: Book) -> list[int]:
        return self.late(book) + super().awaited(book)

    async def _heal(self) -> None:
        self.world.loop.post(None, HEALED_S, self.all_confirmed)  # of what is posted little is under way, however much is to be delivered
        await super()._heal()
        self.all_confirmed()

    def all_confirmed(self) -> None:
        for book in self.books.values():
            late = self.late(book)
            if late and not self.broken:
                self.broken.append(f"F1 {len(late)} of {book.name} are not confirmed {HEALED_S} s after all was healed: {late[:10]}")


def campaign(first: int, last: int) -> Totals:
    totals = Totals()
    for seed in range(first, last):
        try:
            totals.add(Following(seed).go())
        except (Exception, HeadraceError) as e:
            print(f"seed {seed}: {type(e).__name__}: {e}", flush=True)
        if seed % 20 == 19:
            print(totals, flush=True)
    return totals


if __name__ == "__main__":
    print(campaign(int(sys.argv[1]), int(sys.argv[2])))
