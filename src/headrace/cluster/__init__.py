"""Agreement between brokers: the Coordinator interface and its implementations. A lone broker uses ``local``, kept in its own data directory."""
