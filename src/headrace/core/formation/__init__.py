"""Turning a declared cluster config into a running cluster, as one machine a broker (``machine.Formation``): it is fed configs, hears its peers and
learns what became of its effects, and always says in which state it is, what it waits for, on whom and since when.

``parsing`` reads what people write, ``records`` is what must survive a crash, ``messages`` and ``effects`` are its words to the peers and to its
driver. ``peers`` knows who is reachable in which life, ``forming`` makes one cluster out of fresh brokers, ``judging`` says whose data survives when
configs and clusters meet, ``planning`` turns the difference between the committed config and the cluster into steps, ``recovering`` starts again
from a survivor. Waits rather than guesses; never sets data aside that nobody confirmed.
"""
