"""Bugs of a cluster's seams: what a partition makes of its copy, who is elected, what damage and deletions lead to."""

from typing import Final

from headrace.sim.mutants.planting import Edit, Mutant

CLUSTERS: Final = (
    Mutant(
        name="fenced-owner-keeps-its-state",
        wrong="what an owner had decided alone stays in its partition after its epoch",
        notices=("K9", "K1", "K3", "K4", "error"),
        edits=(Edit("broker.copies:Copy.fenced", 'self._drop(f"epoch {epoch} has ended: {reason}")', "return"),),
        net="clusters",
    ),
    Mutant(
        name="confirm-at-the-owners-flush",
        wrong="an owner confirms what its own disk has, whoever else has it",
        notices=("K1", "K4", "K7", "error"),
        edits=(
            Edit("broker.partition:Partition.settings_changed", "own < Level.LOCAL or self.copy is not None", "own < Level.LOCAL"),
            Edit(
                "broker.copies:Copy.append",
                "self.replicated.wait(level, index, self._token)",
                "self.replicated.wait(Level.LOCAL, index, self._token)",
            ),
        ),
        net="clusters",
    ),
    Mutant(
        name="unknown-told-as-refused",
        wrong="what was appended and may yet be committed is refused for certain when its epoch ends",
        notices=("K7",),
        edits=(Edit("broker.copies:Copy.unknown", "error = _unknown(reason)", "error = self._later(Refusal.STARTING)"),),
        net="clusters",
    ),
    Mutant(
        name="elected-outside-the-isr",
        wrong="any replica that lives may become the owner",
        notices=("K1", "K3", "K4", "K8", "K9", "error"),
        edits=(
            Edit("core.control.draft:Draft.in_sync", "broker in a.electable and", "broker in a.replicas and"),
            Edit("core.control.ownership:_best", "enumerate(a.electable)", "enumerate(a.replicas)"),
            Edit("core.control.ownership:elected", "assert chosen in a.electable", "pass"),
        ),
        net="clusters",
    ),
    Mutant(
        name="in-sync-before-it-has-caught-up",
        wrong="a follower comes back into the isr as soon as it follows",
        notices=("K1", "K3", "K4", "K8", "K9", "error"),
        edits=(
            Edit("core.replica.insync:View.in_sync", " and peer.held >= self.bar", ""),
            Edit("core.replica.insync:provable", "configuration(wanted).held(view.held) >= view.bar", "True"),
        ),
        net="clusters",
    ),
    Mutant(
        name="damage-told-to-nobody",
        wrong="a broker does not say in its registration which of its copies are damaged",
        notices=("K1", "K8"),
        edits=(Edit("broker.fitness:Fitness._say", "sorted(self._unfit)[:UNFIT_MAX]", "()"),),
        net="clusters",
    ),
    Mutant(
        name="damaged-copy-left-alone",
        wrong="a damaged copy waits for an operator although others have everything",
        notices=("K1", "K8"),
        edits=(Edit("broker.fitness:Fitness._may_be_renewed", "if partition is None or not driver.damage(pid):", "if True:"),),
        net="clusters",
    ),
    Mutant(
        name="deleted-only-where-it-is-open",
        wrong="a broker that was down keeps the data of what was deleted meanwhile",
        notices=("K8",),
        edits=(Edit("broker.erasing:Erasing._carry_out", "if driver.holds(pid)]", "if pid in driver.partitions]"),),
        net="clusters",
    ),
    Mutant(
        name="records-of-deletions-kept",
        wrong="the record of a deletion stays although everybody has carried it out",
        notices=("K8",),
        edits=(Edit("broker.erasing:Erasing._collect", "if document is not None and all(", "if document is None and all("),),
        net="clusters",
    ),
)
