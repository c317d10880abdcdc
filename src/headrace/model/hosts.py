"""Which texts the system's resolver takes as the name of a host. Does not know whether such a host exists."""


def is_host(host: str) -> bool:
    """False for what ``getaddrinfo`` refuses with ``UnicodeError``: an empty part (``a..b``), a part of more than 63 characters, half a character."""
    try:
        host.encode("idna")
    except UnicodeError:
        return False
    return True
