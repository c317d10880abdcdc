"""HTTP without TLS, for tests that ask often: certificates that nobody looks at take 30 ms of a core to read, each time."""

import ssl

PLAIN = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""For ``verify`` of httpx."""
