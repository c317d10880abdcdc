"""What a queue machine can say of itself: figures, proof of its invariants, what admin shows."""

from headrace.core.queue.admission import Admission
from headrace.core.queue.expiry import Expiry
from headrace.core.queue.leases import Holder
from headrace.core.queue.state import State
from headrace.core.repartition.holding import Holding
from headrace.model.specs import QueueSpec


class Figures:
    """The machine's parts, and everything that only reads them."""

    __slots__ = ("_admission", "_cold", "_expiry", "_gate", "_live", "_ring", "_state", "_turn", "paused")

    def __init__(self, spec: QueueSpec) -> None:
        self._state = State(spec)
        self._admission = Admission()
        self._expiry = Expiry()
        self._ring: list[Holder] = []
        """Attached consumers in the order in which they are served."""
        self._turn = 0
        self._gate: tuple[int | None, int] | None = None
        self._live = False
        """Whether this is an owner's machine: only then does an enqueue make room."""
        self._cold = True
        """Whether there are leases or keys to take up before the next live verb."""
        self.paused = False

    @property
    def spec(self) -> QueueSpec:
        return self._state.spec

    @property
    def end(self) -> int:
        """One past the last enqueued offset."""
        return self._state.end

    @property
    def floor(self) -> int:
        """Lowest offset whose payload may still be needed (unsettled, or in a pending transfer)."""
        return self._state.floor()

    @property
    def ready_count(self) -> int:
        return self._state.ready_count

    @property
    def leased_count(self) -> int:
        return self._state.leases.count

    @property
    def delayed_count(self) -> int:
        return self._state.delayed.count

    @property
    def held_count(self) -> int:
        """Of the unsettled, those whose key slot is held."""
        return self._state.held.count

    @property
    def holding(self) -> Holding:
        """The routing version that was noted last, and what is held since. To be read alone."""
        return self._state.holding

    @property
    def settled_count(self) -> int:
        return self._state.end - self._state.unsettled_count

    @property
    def bytes(self) -> int:
        """Size of all unsettled messages."""
        return self._state.nbytes

    def check(self) -> None:
        """Asserts every invariant; cost grows with the number of ranges."""
        state = self._state
        state.check()
        state.transfers.check()
        assert self.ready_count + self.leased_count + self.delayed_count + self.settled_count == self.end
        assert min(self.ready_count, self.leased_count, self.delayed_count, self.settled_count) >= 0
        assert {id(holder) for holder in self._ring} == {id(holder) for holder in state.leases.by_consumer.values()}
        assert len(self._ring) == len(state.leases.by_consumer)

    @property
    def oldest_wall_ms(self) -> int:
        """When the oldest unsettled message was appended, 0 = there is none."""
        state = self._state
        return state.extents.chunk(state.floor())[1] if state.unsettled_count else 0

    def view(self) -> dict[str, object]:
        """What admin shows."""
        state = self._state
        return {
            "end": self.end,
            "floor": self.floor,
            "ready": self.ready_count,
            "leased": self.leased_count,
            "delayed": self.delayed_count,
            "settled": self.settled_count,
            "bytes": self.bytes,
            "consumers": len(self._ring),
            "paused": self.paused,
            "gate": self._gate,
            "transfers": len(state.transfers.pending),
            "oldest_wall_ms": self.oldest_wall_ms,
        }
