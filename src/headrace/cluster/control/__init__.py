"""The drivers of a broker's presence and of the controller: they follow the coordinator's documents and what is seen of the other brokers, plan by
``core.control`` where this broker is elected, and tell every broker what it owns and copies. They decide nothing that ``core.control`` decides."""
