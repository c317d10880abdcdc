"""Codecs without I/O: native frames, control messages, record batches, journal payloads. Bytes in, values out, never a socket or a clock."""
