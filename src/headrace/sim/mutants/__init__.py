"""Known bugs and the hunt for them: ``python -m headrace.sim.mutants``. A suite that lets one of them pass would let its like pass.

Each is a few words exchanged in one or two functions of the product (``planting``), a mistake that somebody could really make. They lie by layer:
``storage``, ``brokers``, ``queues``, ``streams``, ``clusters``, ``mqtt``. ``hunting`` runs the simulator on each until a promise is seen broken.
"""

from typing import Final

from headrace.sim.mutants.brokers import BROKERS
from headrace.sim.mutants.clusters import CLUSTERS
from headrace.sim.mutants.mqtt import MQTT
from headrace.sim.mutants.planting import Edit, Mutant, Unplantable
from headrace.sim.mutants.queues import QUEUES
from headrace.sim.mutants.storage import STORAGE
from headrace.sim.mutants.streams import STREAMS

__all__ = ["MUTANTS", "Edit", "Mutant", "Unplantable"]

MUTANTS: Final[dict[str, Mutant]] = {mutant.name: mutant for mutant in (*STORAGE, *BROKERS, *QUEUES, *STREAMS, *CLUSTERS, *MQTT)}
