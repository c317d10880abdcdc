"""The words in which scenarios and programs are told: brokers are started, stopped, wiped, fed and looked at in the small world.

Owns what is waited for and how long. Expects nothing by itself.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from headrace.core.formation.effects import Answer, State, Verdict
from headrace.core.formation.parsing import parse
from headrace.model.formation import Declared, mark
from headrace.sim.formation.violation import Violation
from headrace.sim.formation.world import Broker, Weather, World

PATIENCE_MS: Final = 180_000


def declared(version: int, members: Sequence[str] | Mapping[str, Any], **more: Any) -> Declared:
    """A config that has no mistakes."""
    parsed = parse({"version": version, "members": members, **more})
    assert parsed.config is not None, parsed.mistakes
    return parsed.config


class Play:
    """A world with the words in which scenarios are told."""

    def __init__(self, seed: int, names: str, weather: Weather | None = None) -> None:
        self.world = World(seed, list(names), weather)
        self.names = names
        self.wanted: dict[str, bool] = dict.fromkeys(names, False)
        """Who shall run: a broker that a restart ended comes back by itself."""

    def start(self, names: str) -> None:
        for name in names:
            self.wanted[name] = True
            self.world.start(name)

    def stop(self, names: str) -> None:
        for name in names:
            self.wanted[name] = False
            self.world.stop(name)

    def wipe(self, name: str) -> None:
        self.stop(name)
        self.world.wipe(name)

    def broker(self, name: str) -> Broker:
        return self.world.brokers[name]

    def feed(self, name: str, config: Declared) -> Answer:
        """Feeds until it is said for certain: what was begun is durable."""
        for _ in range(200):
            broker = self.broker(name)
            if broker.up:
                answer = self.world.feed(name, config)
                if answer.verdict is Verdict.BEGUN:
                    self.world.run(50)
                    held = broker.records.held
                    if held is not None and held.config.version >= config.version:
                        return answer
                elif answer.verdict is not Verdict.BUSY:
                    return answer
            self.world.run(200)
        raise Violation("progress", f"{name} could not be fed")

    def expect(self, what: str, condition: Callable[[], bool], *, patience_ms: int = PATIENCE_MS, step_ms: int = 500) -> None:
        if not self.world.until(condition, patience_ms, step_ms):
            shown = {n: str(b.formation.standing) if b.formation else "down" for n, b in self.world.brokers.items()}
            raise Violation("progress", f"never: {what}; {shown}")

    def stays(self, what: str, condition: Callable[[], bool], for_ms: int = 15_000) -> None:
        """It comes true and is so for a while."""
        self.expect(what, condition)
        for _ in range(for_ms // 500):
            self.world.run(500)
            if not condition():
                self.expect(what, condition)

    def one_cluster(self, names: str) -> bool:
        return self.world.steady(*names)

    def state(self, name: str, state: State, code: str = "") -> bool:
        broker = self.broker(name)
        return broker.up and broker.state is state and code in ("", broker.code)

    def waits_on(self, name: str, others: str) -> bool:
        broker = self.broker(name)
        return broker.formation is not None and broker.state is State.WAIT and set(broker.formation.standing.on) == set(others)

    def formed(self, names: str, config: Declared) -> str:
        """A cluster of ``names`` that serves."""
        self.start(names)
        self.feed(names[0], config)
        self.expect(f"{names} form", lambda: self.one_cluster(names))
        return self.world.cluster(names[0])

    def voters(self, name: str) -> set[str]:
        """Who votes in the cluster of ``name``."""
        member = self.broker(name).member
        return {m.name for m in member.membership if not m.learner} if member is not None else set()

    def committed(self, name: str) -> tuple[int, str]:
        charter = self.world.charter(self.world.cluster(name))
        return mark(charter.config) if charter is not None else (0, "")

    def same(self, names: str, cluster: str) -> None:
        """They are in that cluster and have given nothing up."""
        for name in names:
            if self.world.cluster(name) != cluster or self.broker(name).aside:
                raise Violation("data", f"{name} is in {self.world.cluster(name)}, not in {cluster}; set aside: {self.broker(name).aside}")

    def standalone(self, name: str) -> str:
        """It serves alone; the id of its data."""
        self.broker(name).coordinated = False
        self.start(name)
        self.expect("standalone", lambda: self.state(name, State.ACTIVE, "standalone"))
        return self.broker(name).data
