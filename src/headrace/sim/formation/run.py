"""Runs of the small world: a scenario in a weather, with a restart at a step; and what came of each."""

import time
import traceback

import msgspec

from headrace.core.formation import effects
from headrace.core.formation.effects import AnyEffect
from headrace.sim.chance import Chance
from headrace.sim.formation.play import Play
from headrace.sim.formation.scenarios import SCENARIOS
from headrace.sim.formation.violation import Violation
from headrace.sim.formation.world import Broker, Weather

STEPS = (
    effects.Store,
    effects.StartConsensus,
    effects.StopConsensus,
    effects.AddLearner,
    effects.Promote,
    effects.Remove,
    effects.Commit,
    effects.SetAside,
)


class Result(msgspec.Struct, frozen=True):
    """What became of a run; ``invariant`` "" = nothing was broken."""

    name: str
    seed: int
    invariant: str
    text: str
    events: int
    steps: int
    seconds: float


def weather_of(seed: int) -> Weather:
    """Clear for seed 0, else drawn from it."""
    if seed == 0:
        return Weather()
    chance = Chance(seed, "weather")
    return Weather(
        loss=chance.choice([0.0, 0.05, 0.2]),
        doubled=chance.choice([0.0, 0.1]),
        delay_ms_max=chance.choice([2, 20, 300]),
        late=chance.choice([0.0, 0.0, 0.02]),
        sync_ms_max=chance.choice([2, 30, 400]),
        answer_lost=chance.choice([0.0, 0.2]),
    )


class Restarts:
    """Ends a broker at its step number ``at`` of all the run's steps, before or after the effect was begun, and starts it again."""

    def __init__(self, play: Play, at: int) -> None:
        self.count = 0
        self._play = play
        self._at = at
        play.world.on_effect = self._seen

    def _seen(self, broker: Broker, effect: AnyEffect) -> bool:
        if not isinstance(effect, STEPS):
            return False
        self.count += 1
        if self.count != self._at:
            return False
        world = self._play.world
        self._at = -1
        if world.chance.happens(0.5):
            world.stop(broker.name)
            world.at(world.chance.randrange(1, 6000), self._back, broker)
            return True
        world.at(world.chance.randrange(0, 40), self._ended, broker)
        return False

    def _ended(self, broker: Broker) -> None:
        self._play.world.stop(broker.name)
        self._play.world.at(self._play.world.chance.randrange(1, 6000), self._back, broker)

    def _back(self, broker: Broker) -> None:
        if self._play.wanted.get(broker.name):
            self._play.world.start(broker.name)


def run_scenario(name: str, seed: int, *, restart_at: int = 0, trace: list[str] | None = None) -> Result:
    """One scenario; whatever a machine raises is a violation too."""
    names, scenario = SCENARIOS[name]
    play = Play(seed, names, weather_of(seed))
    play.world.trace = trace
    restarts = Restarts(play, restart_at)
    began = time.perf_counter()
    invariant = text = ""
    try:
        scenario(play)
    except Violation as e:
        invariant, text = e.invariant, str(e)
    except Exception:
        invariant, text = "raised", traceback.format_exc(limit=-6)
    return Result(f"{name}/{restart_at}", seed, invariant, text, play.world.events, restarts.count, time.perf_counter() - began)
