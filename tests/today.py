"""The day that tests pick by what they try: one for all processes of a run, which have to find the same tests, also around midnight."""

import datetime
import os

TODAY = int(os.environ.setdefault("TESTS_TODAY", str(datetime.date.today().toordinal())))
"""As a number. ``TESTS_TODAY`` is another one: what a run of that day tried."""
