"""Reads the configuration (``model.config``) from a TOML file, the environment and flags, says where each value came from, and writes its reference.

It decides nothing about the broker: a loaded configuration is a frozen value. Used by the CLI and by whoever starts a broker in process.
"""

from headrace.config.reading import Loaded, Mistake, load, read
from headrace.config.reference import as_toml, reference
from headrace.config.units import bytes_text, duration_text, parse_bytes, parse_duration_ms

__all__ = ["Loaded", "Mistake", "as_toml", "bytes_text", "duration_text", "load", "parse_bytes", "parse_duration_ms", "read", "reference"]
