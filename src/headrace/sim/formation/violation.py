"""What a broken promise of the formation is raised as."""


class Violation(Exception):
    """``invariant`` was broken."""

    def __init__(self, invariant: str, text: str) -> None:
        super().__init__(f"{invariant}: {text}")
        self.invariant = invariant
