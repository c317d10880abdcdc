"""Bugs of the formation that somebody could really make, planted by exchanging a few words, and the hunt for them.

Each must be seen by the scenarios or by the random programs; the product has no switch for any.
"""

from typing import Final

from headrace.sim.formation.programs import run_program
from headrace.sim.formation.run import run_scenario
from headrace.sim.formation.scenarios import SCENARIOS
from headrace.sim.mutants.planting import Edit, Mutant

AT = "core.formation."


def _mutant(name: str, wrong: str, *edits: tuple[str, str, str], notices: tuple[str, ...] = ()) -> Mutant:
    return Mutant(name=name, wrong=wrong, notices=notices, edits=tuple(Edit(AT + place, old, new) for place, old, new in edits))


MUTANTS: Final[tuple[Mutant, ...]] = (
    _mutant(
        "wipe-on-gossip",
        "sets data aside because another cluster lists this broker, confirmed or not",
        ("judging:meet", "if not config.confirms(here.cluster_id):", "if False:"),
    ),
    _mutant(
        "form-with-an-unknown-absent-voter",
        "forms although some members cannot be reached",
        ("forming:Forming.step", "if hello is None:", "if hello is None and name != config.seed:\n    continue\nif hello is None:"),
        (
            "forming:Forming._lead",
            "for name in config.voters:\n    if name == books.name:",
            "for name in config.voters:\n    if name == books.name or books.hello(name) is None:",
        ),
    ),
    _mutant(
        "old-vote-counted",
        "a directory that lost the data of its seat takes the seat again",
        ("membership:Membership._settle", "if identity.seat and identity.settled and books.consensus_seat != identity.seat:", "if False:"),
        ("planning:_Plan.former", "if enrolled is None or enrolled.seat != member.seat:", "if enrolled is None:"),
        ("planning:_Plan.replaced", "replace(enrolled, incarnation=hello.incarnation, seat=0)", "replace(enrolled, incarnation=hello.incarnation)"),
    ),
    _mutant(
        "promise-not-durable",
        "says that it has promised before that is on the disk",
        ("forming:Forming._make", 'return ""', 'self._say(books.storing) if seed != books.name else None\nreturn ""'),
    ),
    _mutant(
        "reset-repeated",
        "resets at every version of a config that once said reset",
        ("judging:_gospel", 'if before != RESET or config.reset_policy == "always":', "if True:"),
        ("judging:_end", "if unconfirmed:", "if False:"),
    ),
    _mutant(
        "acceptance-skipped",
        "starts the consensus on the promise alone",
        (
            "forming:Forming.offered",
            "books.store(Acceptance(bootstrap=record))",
            "books.records = books.records.stored(Acceptance(bootstrap=record))",
        ),
    ),
    _mutant(
        "record-not-promised-accepted",
        "accepts a bootstrap record that it has not promised",
        ("forming:Forming.offered", "not self._is_of(record, promise)", "False"),
    ),
    _mutant(
        "earlier-promise-forgotten",
        "forms a younger config without asking what became of the older one",
        ("forming:Forming._alive", "past = 0", "return False"),
    ),
    _mutant(
        "formed-ones-overlooked",
        "forms a cluster although a member belongs to one",
        ("membership:Membership.fresh", "formed = books.holding(config.names)", "formed = ()"),
        ("forming:Forming.step", 'elif hello.condition != "fresh":', 'elif hello.condition == "starting":'),
        ("forming:Forming.step", "elif (hello.version, hello.hash) != mark(config) or hello.of:", "elif False:"),
        ("forming:Forming._unwilling", "if formed:", "if False:"),
    ),
    _mutant(
        "younger-not-committed",
        "applies a config that it holds without committing it",
        ("membership:Membership._propose", "if config is None or charter.reset:", "if True:"),
    ),
    _mutant(
        "older-committed",
        "takes every config of another version for a younger one",
        ("books:Books.proposed", "is not Comparison.YOUNGER", "is Comparison.SAME"),
    ),
    _mutant(
        "removal-without-quorum",
        "takes voters out however few remain",
        ("planning:_Plan.unsafe", "if len(rest) - len(silent) < len(rest) // 2 + 1:", "if False:"),
    ),
    _mutant(
        "promoted-before-caught-up",
        "promotes a learner that never answered",
        ("planning:_Plan.seats", "ready = hello is not None and hello.seat == enrolled.seat and hello.caught_up", "ready = True"),
    ),
    _mutant(
        "removed-not-told",
        "forgets those who were away when they were removed",
        ("telling:Telling._lacks", 'if hello.condition in ("formed", "accepted", "removed") and', 'if hello.condition == "accepted" and'),
    ),
    _mutant(
        "end-not-told",
        "does not tell the other members of a cluster that it has ended, once it is in another one itself",
        (
            "telling:Telling.answer",
            "if identity is not None and identity.ordered_by is not None:",
            'if identity is not None and identity.ordered_by is not None and books.condition == "fresh":',
        ),
    ),
    _mutant(
        "dead-life-believed",
        "believes the first message of a life it has not heard of",
        ("peers:Peers.heard", "if hello.boot in peer.past:\n    return False", "pass"),
        ("peers:Peers.heard", "if hello.echo_boot == self.boot and hello.echo > peer.noticed:", "if True:"),
    ),
    _mutant(
        "conflict-overlooked",
        "goes on with one of two contents of a version",
        ("machine:Formation._conflicts", "compare(theirs, mine) is Comparison.CONFLICT", "False"),
        ("forming:Forming.step", "elif (hello.version, hello.hash) != mark(config) or hello.of:", "elif hello.version != config.version:"),
    ),
    _mutant(
        "new-after-formed",
        "starts its consensus member anew at every start",
        ("membership:Membership._rejoin", 'mode="existing"', 'mode="new"'),
    ),
)


def hunt(mutant: Mutant, *, runs_max: int = 400) -> tuple[int, str]:
    """Runs the world with the bug until something is broken: how many runs it took (0 = never) and what was seen."""
    runs = 0
    with mutant.plant():
        for seed in range(1, 1 + runs_max):
            for name in SCENARIOS:
                if seed > 4:
                    break
                runs += 1
                result = run_scenario(name, seed - 1)
                if result.invariant:
                    return runs, f"{name}: {result.invariant}"
            runs += 1
            outcome = run_program(seed)
            if outcome.invariant:
                return runs, f"program {seed}: {outcome.invariant}"
            if runs >= runs_max:
                break
    return 0, ""
