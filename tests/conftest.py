"""What tests have to tell (``record_property("told", text)``) stands above the summary, whichever process ran them."""

import signal

import pytest
from hypothesis import settings

from tests.today import TODAY

settings.register_profile("headrace", deadline=None)  # how long an example takes says something of the machine
settings.load_profile("headrace")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # started in the background: programs that tests interrupt would ignore it as well
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_report_header() -> str:
    """Imported with this file, before there are workers: they inherit it."""
    return f"what is picked by the day: TESTS_TODAY={TODAY}"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for outcome in ("passed", "failed"):
        for report in terminalreporter.getreports(outcome):
            for name, text in report.user_properties:
                if name == "told":
                    terminalreporter.write_line(str(text))
