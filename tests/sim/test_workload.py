"""Plans that can be written down and made smaller; whole runs of the workload against a real broker, quiet ones and some with deaths."""

import asyncio

import msgspec
import pytest

import headrace
from headrace.model.config import Config, Connection, Storage
from headrace.model.specs import QueueSpec, StreamSpec
from headrace.sim.chance import Chance
from headrace.sim.checks import Violation, check
from headrace.sim.history import History, id_of, value_of
from headrace.sim.plan import Client, Name, Plan, draw, smaller
from headrace.sim.workload import Stalled, Workload
from headrace.sim.world import SimBroker, Speeds, World

SMALL = Storage(
    wal_file_bytes=1 << 20, wal_bytes_max=1 << 23, flush_bytes_max=1 << 18, tail_cache_bytes=1 << 14, ballast_bytes=0, disk_free_bytes_min=0
)


class Run:
    """A broker and a workload; ``deaths``: after so many seconds it is killed and started again."""

    def __init__(self, seed: int, plan: Plan | None = None, *, deaths: tuple[float, ...] = (), power: bool = False) -> None:
        with World(seed, rows_max=0) as world:
            self.world = world
            self.broker = world.broker("b1", Config(storage=SMALL, connection=Connection(reconnect_grace_ms=500)))
            self.history = History()
            self.plan = plan or draw(world.chance.fork("plan"))
            self.workload = Workload(world, [self.broker], self.plan, self.history, world.chance.fork("workload"))
            world.loop.run_until_complete(self._run(deaths, power))
            self.violations: list[Violation] = check(self.history, world, [self.broker])
            self.errors = world.errors()
            self.digest = world.trace.digest()
            self.steps = world.loop.steps

    async def _run(self, deaths: tuple[float, ...], power: bool) -> None:
        await self.broker.start()
        self.workload.start()
        for seconds in deaths:
            await asyncio.sleep(seconds)
            self.broker.kill(power=power)
            await asyncio.sleep(0.05)
            await self.broker.start()
        while not self.workload.done:
            await asyncio.sleep(0.05)
        await self.workload.finish()


# ---------------------------------------------------------------- plans


@pytest.mark.parametrize("seed", range(30))
def test_a_plan_survives_json_and_its_reductions_are_plans(seed: int) -> None:
    plan = draw(Chance(seed))
    assert msgspec.json.decode(msgspec.json.encode(plan), type=Plan) == plan
    assert draw(Chance(seed)) == plan
    for candidate in smaller(plan):
        assert candidate != plan
        assert msgspec.json.decode(msgspec.json.encode(candidate), type=Plan) == candidate
        names = [name.name for name in candidate.names]
        assert all(client.name in names for client in candidate.clients)
        assert all(name.queue.dead_letter in ("", *names) for name in candidate.names if name.queue is not None)


def test_reductions_end() -> None:
    plan, steps = draw(Chance(4)), 0
    while (candidate := next(smaller(plan), None)) is not None:
        plan, steps = candidate, steps + 1
        assert steps < 1000
    assert len(plan.clients) == 1
    assert plan.clients[0].operations == 1


def test_each_feature_is_drawn_by_some_seed() -> None:
    plans = [draw(Chance(seed)) for seed in range(200)]
    specs = [n.queue for p in plans for n in p.names if n.queue is not None]
    streams = [n.stream for p in plans for n in p.names if n.stream is not None]
    clients = [c for p in plans for c in p.clients]
    for field in ("dead_letter", "max_deliveries", "backoff_ms", "ttl_ms", "max_age_ms", "max_messages", "ordered_by_key"):
        assert any(getattr(spec, field) for spec in specs), field
    assert {spec.overflow for spec in specs} == {"refuse", "drop_oldest", "dead_letter_oldest"}
    assert {spec.tier for spec in streams} == {"durable", "speculative", "ephemeral"}
    for field in ("compaction", "retention_ms", "retention_bytes", "retention_records"):
        assert any(getattr(spec, field) for spec in streams), field
    for field in ("delay", "ttl", "priorities", "tombstones", "hasty", "auto_ack", "auto_extend", "lease_ms", "filter", "cohort", "member", "retry",
                  "reject", "drop", "extend", "late", "forget", "abandon", "cursor", "group", "explicit", "awaited", "keys"):  # fmt: skip
        assert any(getattr(client, field) for client in clients), field
    assert {c.kind for c in clients} == {"publisher", "consumer", "puller", "reader", "admin"}
    assert {v for c in clients for v in c.verbs} >= {"purge", "purge_leased", "pause", "alter", "move", "redrive", "recreate", "trim", "set_cursor"}


def test_a_value_is_known_again_or_not_at_all() -> None:
    class Content:
        is_null = False
        value = value_of(417, 100)

    content: Content = Content()
    assert id_of(content) == 417  # type: ignore[arg-type]
    assert len(content.value) == 100
    content.value = content.value[:-1] + b"!"
    assert id_of(content) == -1  # type: ignore[arg-type]


# ---------------------------------------------------------------- runs


@pytest.mark.parametrize("seed", range(1, 7))
def test_a_quiet_run_breaks_nothing(seed: int) -> None:
    run = Run(seed)
    assert run.violations == []
    assert run.errors == []
    assert run.history.finished is not None


@pytest.mark.parametrize(("seed", "power"), [(11, False), (12, True), (13, False), (14, True)])
def test_a_run_with_deaths_breaks_nothing(seed: int, power: bool) -> None:
    run = Run(seed, deaths=(0.4, 0.3, 0.5), power=power)
    assert run.violations == []
    assert run.errors == []


def test_a_seed_is_the_same_run_again() -> None:
    first, second = (Run(21, deaths=(0.5,)) for _ in range(2))
    assert first.digest == second.digest
    assert first.history.totals() == second.history.totals()
    assert first.steps == second.steps


def test_everything_that_was_published_is_delivered_and_read() -> None:
    plan = Plan(
        names=(Name("q", queue=QueueSpec(partitions=2, lease_ms=300)), Name("s", stream=StreamSpec())),
        clients=(
            Client(kind="publisher", name="q", operations=10, batch=5),
            Client(kind="publisher", name="s", operations=10, batch=5),
            Client(kind="consumer", name="q", operations=10, retry=0.5, retry_delay_ms=0),
            Client(kind="reader", name="s", operations=10),
        ),
        seconds=1.0,
    )  # fmt: skip
    run = Run(3, plan)
    assert run.violations == []
    published = [p.id for p in run.history.publishes.values() if p.name == "q"]
    assert sorted({d.id for d in run.history.deliveries}) == published
    final = [r.id for r in run.history.reads if run.history.attached[r.reader].kind == "final"]
    assert sorted(final) == [p.id for p in run.history.publishes.values() if p.name == "s"]


def test_what_does_not_come_to_rest_is_said() -> None:
    plan = Plan(names=(Name("q", queue=QueueSpec()),), clients=(Client(kind="publisher", name="q"),), seconds=0.1)
    with World(1, rows_max=0) as world:
        broker = world.broker("b1", Config(storage=SMALL))
        workload = Workload(world, [broker], plan, History(), Chance(1))

        async def main() -> None:
            await broker.start()
            workload.start()
            while not workload.done:
                await asyncio.sleep(0.05)
            world.network.cut("drain", "b1")
            await workload.finish()

        with pytest.raises(Stalled, match="I16"):
            world.loop.run_until_complete(main())


# ---------------------------------------------------------------- what such runs have found


def test_what_waits_for_the_disk_is_not_sent_twice_to_a_client_that_came_back() -> None:
    """A connection broke while granted messages were being read from disk: back again, its client was granted them anew and sent both."""
    storage = msgspec.structs.replace(SMALL, tail_cache_bytes=1)
    with World(1, rows_max=0) as world:
        broker: SimBroker = world.broker("b1", Config(storage=storage))
        broker.speeds = Speeds(work=(0.5, 0.5))
        host = world.machine("host")
        offsets: list[int] = []

        async def main() -> None:
            await broker.start()
            client = await headrace.connect(broker.url)
            await client.declare_queue("q")
            for i in range(20):
                await client.publish("q", value_of(i, 1500))
            async with client.consume("q") as consumer:
                await asyncio.sleep(0.1)
                world.network.break_connections("host")
                await asyncio.sleep(5)
                while (message := consumer.next_ready()) is not None:
                    offsets.append(message.offset)
            await client.close()

        world.loop.run_until_complete(world.loop.spawn(host, main()))
    assert offsets == list(range(20))
