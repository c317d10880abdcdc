"""Datagrams on the simulated network: they take the links that connections take, and what does not arrive is lost.

Owns who listens for them, and their faults: a cut link loses them, so does chance; some arrive twice; none is in order. Nobody is told.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

from headrace.model.config import Address
from headrace.sim.loop import Machine
from headrace.sim.network import Network

Receive: TypeAlias = Callable[[Address, Any], None]
"""Given the sender's address and the datagram: any value that nobody changes."""


class Datagrams:
    """One per network."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.loss = 0.0
        self.doubles = 0.0
        """How often one is lost, or arrives twice."""
        self._chance = network.chance.fork("datagrams")
        self._bound: dict[Address, tuple[Machine, Receive]] = {}

    def bind(self, machine: Machine, port: int, receive: Receive) -> Address:
        address = Address(machine.name, port)
        before = self._bound.get(address)
        if before is not None and before[0].alive:
            raise OSError(f"port {port} of {machine.name} is in use")
        self._bound[address] = machine, receive
        return address

    def unbind(self, address: Address) -> None:
        self._bound.pop(address, None)

    def send(self, source: Address, target: Address, data: Any) -> None:
        link, chance = self.network.link(source.host, target.host), self._chance
        if link.cut or chance.happens(self.loss):
            return
        bound = self._bound.get(target)
        if bound is None:
            return
        machine, _ = bound
        for _ in range(2 if chance.happens(self.doubles) else 1):
            delay = link.delay_s + link.spread_s * chance.random()
            self.network.loop.post(machine, delay, self._arrived, machine, source, target, data)

    def _arrived(self, machine: Machine, source: Address, target: Address, data: Any) -> None:
        bound = self._bound.get(target)
        if bound is not None and bound[0] is machine:
            self.network.loop.trace.note(machine.name, "hears", f"{data[0]} from {source}")
            bound[1](source, data)
