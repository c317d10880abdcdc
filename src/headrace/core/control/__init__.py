"""What the controller decides, as pure functions: from one picture of the cluster (catalogue, brokers and the evidence about them, assignments,
settings, time) to an ordered list of changes, each a compare-and-swap on one partition with its reason in one sentence. Two controllers at once are
harmless: every change names the version it was decided on. Nothing here writes, waits or remembers."""
