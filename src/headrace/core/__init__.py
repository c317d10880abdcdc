"""The machines: queue, stream, groups, filters and the like as plain synchronous objects. No I/O, no clock, no randomness: time and completions
come in, effects go out."""
