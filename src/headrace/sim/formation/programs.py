"""Random programs: start, stop, wipe, feed, one a step; after each the brokers must come to rest where the naive model says.

Owns what is drawn and how a broker's standing is compared with the model's. While a step settles, brokers are killed and started again, and messages
are lost, doubled and late; none of that may change where everything rests.
"""

import time
import traceback
from collections.abc import Mapping

import msgspec

from headrace.core.formation.effects import State, Verdict
from headrace.core.formation.peers import SILENT_MS
from headrace.model.formation import Declared
from headrace.sim.chance import Chance
from headrace.sim.formation.model import Facts, Rest
from headrace.sim.formation.play import Play, declared
from headrace.sim.formation.violation import Violation
from headrace.sim.formation.world import Broker, Weather

NAMES = "abcde"
PATIENCE_MS = 120_000
SURPRISED_MS = 10_000


class Outcome(msgspec.Struct, frozen=True):
    """What became of a program; ``invariant`` "" = it did what the model says."""

    seed: int
    invariant: str
    text: str
    events: int
    steps: int
    clusters: int
    asides: int
    surprises: int
    seconds: float


def weather(chance: Chance) -> Weather:
    """Most programs run in a fair one."""
    return Weather(
        loss=chance.choice([0.0, 0.0, 0.1]),
        doubled=chance.choice([0.0, 0.1]),
        delay_ms_max=chance.choice([2, 20, 200]),
        late=chance.choice([0.0, 0.0, 0.01]),
        sync_ms_max=chance.choice([2, 30]),
        answer_lost=chance.choice([0.0, 0.2]),
    )


class Program:
    """One program that is being run."""

    def __init__(self, seed: int, trace: list[str] | None) -> None:
        self.chance = chance = Chance(seed, "program")
        self.play = Play(seed, NAMES, weather(chance.fork("weather")))
        self.play.world.trace = trace
        self.version = 0
        self.configs: list[Declared] = []
        self.kills = chance.choice([0, 0, 1, 2])
        self.steps = 0
        self.surprises = 0
        """Steps that came to rest where the model allows it, but not where it said before they began: who heard what first decides some."""
        self.contacts: dict[str, set[str]] = {}
        """Who greeted whom before the last step."""

    def run(self) -> None:
        chance, play = self.chance, self.play
        size = chance.choice([3, 4, 5, 5])
        play.start(NAMES[:size])
        play.world.run(chance.randrange(0, 1500))
        self.feed(chance.choice(NAMES[:size]))
        self.settle()
        for _ in range(chance.randrange(3, 9)):
            self.step()
            self.settle()
            play.world.run(SILENT_MS)
        play.world.run(8_000)
        self.kills = 0
        self.settle()

    def step(self) -> None:
        """One thing that an operator or a machine does."""
        chance, play = self.chance, self.play
        self.steps += 1
        up = [n for n in NAMES if play.broker(n).up]
        down = [n for n in NAMES if not play.broker(n).up]
        kind = chance.pick([(3.0, "start"), (2.0, "stop"), (1.2, "wipe"), (3.0, "feed"), (0.6, "all"), (0.4, "again")])
        if kind == "start" and down:
            play.start(chance.choice(down))
        elif kind == "stop" and up:
            play.stop(chance.choice(up))
        elif kind == "wipe":
            play.wipe(chance.choice(NAMES))
        elif kind == "all":
            play.stop(NAMES)
            for name in chance.sample(NAMES, k=chance.randrange(2, 6)):
                play.start(name)
                play.world.run(chance.randrange(0, 2000))
        elif kind == "again" and up and self.configs:
            play.feed(chance.choice(up), chance.choice(self.configs))
        elif up:
            self.feed(chance.choice(up))

    def feed(self, name: str) -> None:
        """A younger config, anywhere."""
        chance, play = self.chance, self.play
        self.version += chance.randrange(1, 3)
        listed = sorted(chance.sample(NAMES, k=chance.choice([2, 3, 3, 4, 5])))
        if name not in listed and chance.happens(0.7):
            listed = sorted([*listed[1:], name])
        members = {n: "voter" if chance.happens(0.75) else "observer" for n in listed}
        if "voter" not in members.values():
            members[listed[0]] = "voter"
        gospel = chance.pick([(5.0, ""), (3.0, chance.choice(listed)), (1.5, "reset")])
        clusters = sorted({c for n in NAMES if (c := play.world.cluster(n))})
        confirmed = clusters if chance.happens(0.4) else [c for c in clusters if chance.happens(0.2)]
        requires = chance.choice(["all", "all", "voters"])
        config = declared(self.version, members, gospel=gospel, confirm_discard=confirmed, form_requires=requires)
        answer = play.feed(name, config)
        if answer.verdict in (Verdict.CONFLICT, Verdict.OLDER):
            raise Violation("answer", str(answer))
        self.configs.append(config)

    def settle(self) -> None:
        """Everything comes to rest, whoever is killed meanwhile."""
        chance, play = self.chance, self.play
        for _ in range(self.kills):
            up = [n for n in NAMES if play.broker(n).up]
            if up:
                play.world.at(chance.randrange(1, 3000), self._kill, chance.choice(up))
        predictions = [Facts(play.world).rest()]
        if self.contacts:
            predictions.append(Facts(play.world).rest(self.contacts))
        if self.kills:
            play.world.run(3_600)
        for _ in range(PATIENCE_MS // 500):
            if not self.differences(Facts(play.world).rest()):
                break
            play.world.run(500)
        self._compare(Facts(play.world).rest())
        for _ in range(SURPRISED_MS // 500):
            if not all(self.differences(p) for p in predictions):
                break
            play.world.run(500)
        else:
            self.surprises += 1
        self.contacts = Facts(play.world).audiences()

    def _kill(self, name: str) -> None:
        if self.play.broker(name).up:
            self.play.world.stop(name)
            self.play.world.at(self.chance.randrange(1, 500), self._back, name)

    def _back(self, name: str) -> None:
        if self.play.wanted[name]:
            self.play.world.start(name)

    # ------------------------------------------------------------ comparing

    def _compare(self, expected: Mapping[str, Rest]) -> None:
        wrong = self.differences(expected)
        if wrong:
            raise Violation("model", "; ".join(wrong))

    def differences(self, expected: Mapping[str, Rest]) -> list[str]:
        """Where brokers stand otherwise than the model says; clusters that are new to it are the same for the same brokers."""
        wrong: list[str] = []
        new: dict[str, str] = {}
        for name, rest in expected.items():
            broker = self.play.broker(name)
            seen = self.seen(broker)
            if rest.doubt and seen.kind in ("removed", "active", "leaving", "no_quorum"):
                continue
            if rest.doubt and {seen.kind, rest.kind} == {"wait", "not_listed"}:
                continue  # whether it has heard of the younger config that leaves it out
            kinds = {seen.kind, "active", "no_quorum"} if seen.kind == "leaving" else {seen.kind}
            if rest.kind not in kinds:
                wrong.append(f"{name} is {seen.kind} ({broker.code}), not {rest.kind}")
            elif rest.kind == "active" and seen.kind != "leaving":
                cluster = new.setdefault(rest.cluster, seen.cluster)
                if cluster != seen.cluster or (not rest.cluster.startswith("new") and rest.cluster != seen.cluster):
                    wrong.append(f"{name} is in {seen.cluster}, not in {rest.cluster} ({cluster})")
                elif seen.version != rest.version:
                    wrong.append(f"{name} has version {seen.version}, not {rest.version}")
        return wrong

    def seen(self, broker: Broker) -> Rest:
        """How a broker stands, in the model's words."""
        if not broker.up:
            return Rest("down")
        state, code = broker.state, broker.code
        cluster = self.play.world.cluster(broker.name)
        charter = self.play.world.charter(cluster)
        version = charter.config.version if charter is not None else 0
        if code in ("being_removed",):
            return Rest("leaving", cluster, version)
        if state is State.ACTIVE and code == "serving":
            return Rest("active", cluster, version)
        if code in ("no_leader", "no_quorum") or (code == "would_lose_data" and state is State.HALTED):
            return Rest("no_quorum", cluster, version)
        if code in ("no_config", "not_listed"):
            return Rest(code)
        if state is State.REMOVED:
            return Rest("removed")
        if state is State.WAIT:
            return Rest("wait")
        return Rest(code)


def run_program(seed: int, *, trace: list[str] | None = None) -> Outcome:
    """One program; whatever a machine raises is a violation too."""
    program = Program(seed, trace)
    began = time.perf_counter()
    invariant = text = ""
    try:
        program.run()
    except Violation as e:
        invariant, text = e.invariant, str(e)
    except Exception:
        invariant, text = "raised", traceback.format_exc(limit=-6)
    world = program.play.world
    return Outcome(
        seed, invariant, text, world.events, program.steps, len(world.store.ledgers), world.checks.asides, program.surprises,
        time.perf_counter() - began,
    )  # fmt: skip
