"""HTTP without TLS, for tests that ask often: certificates that nobody looks at take 30 ms of a core to read, each time."""

import ssl

PLAIN = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""For ``verify`` of httpx."""
ANSWER_S = 30.0
"""For ``timeout``: the first one who asks a broker waits until its application is imported, for long on a busy machine."""
