"""Headrace beside its peers on one machine: `make bench` starts each target, gives them turns over several rounds and writes medians."""
