"""Makes the faults of a scenario happen, keeps brokers coming back meanwhile, and heals everything in the end.

Owns when brokers run. Knows what each fault does to a machine, its disk or its links; which and when is the scenario's.
"""

import asyncio
import errno
from collections.abc import Sequence

import msgspec

from headrace.sim.chance import Chance
from headrace.sim.disk import Fault as Fails
from headrace.sim.scenario import DAMAGE, Fault
from headrace.sim.world import DATA, SimBroker, World

RESTART_S = 0.05
CAPACITY = 1 << 40


class Faults:
    """``start`` once; ``heal`` ends them and returns when every broker serves."""

    def __init__(self, world: World, brokers: Sequence[SimBroker], faults: Sequence[Fault], chance: Chance) -> None:
        self.world = world
        self.brokers = list(brokers)
        self.faults = list(faults)
        self.damaged = False
        """Bytes were hurt: what is quarantined from now on is no surprise."""
        self.happened = 0
        self._chance = chance
        self._down_until: dict[str, float] = {}
        self._images: dict[str, dict[str, bytes]] = {}
        self._healed = False
        self._errors: dict[str, list[str]] = {broker.name: [] for broker in brokers}
        """Storage faults that wait for the next call of their kind."""
        self._usual = {broker.name: broker.speeds.slow for broker in brokers}
        """How often a disk is slow when nothing is wrong with it."""
        self._cuts: list[tuple[str, str]] = []

    def start(self) -> None:
        """Brokers are started, and again whenever they end."""
        for broker in self.brokers:
            broker.disk.fault = self._fault_of(broker)
            self.world.loop.spawn(self.world.loop.world, self._keep(broker), f"keeper of {broker.name}")

    def schedule(self) -> None:
        """The faults happen, counted from now."""
        for number, fault in enumerate(self.faults):
            self.world.loop.post(None, fault.at, self._happen, number)

    async def _keep(self, broker: SimBroker) -> None:
        while True:
            until = self._down_until.get(broker.name, 0.0)
            now = self.world.loop.time()
            if until > now and not self._healed:
                await asyncio.sleep(min(until - now, RESTART_S))
            elif not broker.alive:
                broker.start()
                await asyncio.sleep(RESTART_S)
            else:
                await asyncio.sleep(RESTART_S)

    async def heal(self) -> None:
        """No fault from here on; returns when every broker serves."""
        self._healed = True
        self.world.note("world", "heals")
        for broker in self.brokers:
            broker.disk.fault = None
            broker.disk.capacity = CAPACITY
            broker.speeds = msgspec.structs.replace(broker.speeds, slow=0.0)
            broker.resume()
        self.world.network.heal_all()
        for broker in self.brokers:
            while not broker.serving or (broker.running is not None and broker.running.broker.disk_nearly_full):  # noqa: ASYNC110 - what ends is not of one kind
                await asyncio.sleep(RESTART_S)

    # ------------------------------------------------------------ what goes wrong

    def _happen(self, number: int) -> None:
        if self._healed:
            return
        fault = self.faults[number]
        broker = self.brokers[fault.broker % len(self.brokers)]
        chance = self._chance.fork(f"{number}")
        self.happened += 1
        self.damaged = self.damaged or fault.kind in DAMAGE
        match fault.kind:
            case "kill" | "power":
                self._die(broker, fault)
            case "stop":
                self._down_until[broker.name] = self.world.loop.time() + fault.seconds
                self.world.loop.spawn(self.world.loop.world, broker.stop(), f"stop {broker.name}")
            case "pause":
                broker.pause()
                self.world.loop.post(None, fault.seconds, broker.resume)
            case "cut":
                self._cut(broker, fault, chance)
            case "reset":
                self.world.note("network", "resets", broker.name)
                self.world.network.break_connections(broker.name)
            case "sync_error" | "write_error":
                self.world.note(broker.name, "disk", f"the next {'sync' if fault.kind == 'sync_error' else 'write'} will fail")
                self._errors[broker.name].append(fault.kind)
            case "full":
                room = chance.choice((0, 4096, 65_536))
                self.world.note(broker.name, "disk", f"has {room} bytes of room left")
                broker.disk.capacity = sum(len(node.data) for node in broker.disk.names.values()) + room
                self.world.loop.post(None, fault.seconds, self._roomy, broker)
            case "slow":
                self.world.note(broker.name, "disk", "is slow")
                broker.speeds = msgspec.structs.replace(broker.speeds, slow=0.5)
                self.world.loop.post(None, fault.seconds, self._quick, broker)
            case "clock":
                broker.jump(fault.seconds)
            case "flip" | "stale" | "state_lost":
                self._hurt(broker, fault, chance)

    def _die(self, broker: SimBroker, fault: Fault) -> None:
        self._down_until[broker.name] = self.world.loop.time() + fault.seconds
        broker.kill(power=fault.kind == "power")
        if fault.again:

            def once_more() -> None:
                if not self._healed:
                    broker.kill(power=fault.kind == "power")

            self.world.loop.post(None, fault.seconds + RESTART_S + fault.again, once_more)

    def _cut(self, broker: SimBroker, fault: Fault, chance: Chance) -> None:
        others = [name for name in self.world.network.machines if name != broker.name]
        for other in others:
            if not chance.happens(0.6):
                continue
            ways = chance.choice((((broker.name, other),), ((other, broker.name),), ((broker.name, other), (other, broker.name))))
            for source, target in ways:
                self.world.network.cut(source, target)
                self.world.loop.post(None, fault.seconds, self.world.network.heal, source, target)

    def _roomy(self, broker: SimBroker) -> None:
        broker.disk.capacity = CAPACITY

    def _quick(self, broker: SimBroker) -> None:
        if not self._healed:
            broker.speeds = msgspec.structs.replace(broker.speeds, slow=self._usual[broker.name])

    def _hurt(self, broker: SimBroker, fault: Fault, chance: Chance) -> None:
        """Its disk loses or changes what was synced, while it is down."""
        disk = broker.disk
        self._down_until[broker.name] = self.world.loop.time() + fault.seconds
        broker.kill(power=True)
        files = [path for path in disk.files(DATA) if ("/wal/" in path or "/segments/" in path) and disk.image(path).rstrip(b"\0")]
        if fault.kind == "state_lost":
            self.world.note(broker.name, "disk", "the small state is gone")
            for values in disk.states.values():
                values.clear()
        elif files and fault.kind == "flip":
            path = chance.choice(files)
            end = len(disk.image(path).rstrip(b"\0"))
            for log, offset, data in reversed(broker.last_flushes):
                if log == path:  # damage in the last flush is a flush that was torn, and may have been confirmed only just now
                    end = min(end, offset)
                if log in disk.names and disk.image(log)[offset : offset + len(data)] == data:
                    break  # else it was torn, and the one before it is the last
            if not end:
                return
            at = chance.randrange(end)
            disk.flip(path, at, 1 << chance.randrange(8))
            self.world.note(broker.name, "disk", f"bit flip in {path} at {at}")
        elif files := [path for path in files if "/segments/" in path]:  # of the log's end nobody could tell that it was longer
            path = chance.choice(files)
            image = disk.image(path)
            at = chance.randrange(len(image.rstrip(b"\0"))) & ~511
            disk.restore(path, image[:at] + bytes(len(image) - at))
            self.world.note(broker.name, "disk", f"{path} is as it was when it had {at} bytes")

    def _fault_of(self, broker: SimBroker) -> Fails:
        waiting = self._errors[broker.name]

        def fault(operation: str, path: str, nbytes: int) -> int | None:
            if not waiting or self._healed:
                return None
            kind = waiting[0]
            if kind == "sync_error" and operation in ("pwritev_durable", "fsync", "fsync_dir", "commit"):
                waiting.pop(0)
                self.world.note(broker.name, "disk", f"{operation} of {path} fails")
                raise OSError(errno.EIO, "the sync failed", path)
            if kind == "write_error" and operation in ("pwritev_durable", "pwrite"):
                waiting.pop(0)
                self.world.note(broker.name, "disk", f"{operation} of {path} fails half way")
                return nbytes // 2
            return None

        return fault
