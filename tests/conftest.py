"""What tests have to tell (``record_property("told", text)``) stands above the summary, whichever process ran them."""

import pytest


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for outcome in ("passed", "failed"):
        for report in terminalreporter.getreports(outcome):
            for name, text in report.user_properties:
                if name == "told":
                    terminalreporter.write_line(str(text))
