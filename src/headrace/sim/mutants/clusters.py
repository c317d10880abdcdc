"""Bugs of a cluster's seams: what damage and deletions lead to."""

from typing import Final

from headrace.sim.mutants.planting import Edit, Mutant

CLUSTERS: Final = (
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
