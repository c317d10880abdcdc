"""How hard the property tests try: enough for every run, and twenty times that with ``HYPOTHESIS_PROFILE=thorough``."""

import os

from hypothesis import HealthCheck, settings

THOROUGH = os.environ.get("HYPOTHESIS_PROFILE", "") == "thorough"
FACTOR = 20 if THOROUGH else 1
TIMEOUT_S = 3600
"""A thorough test may take that long; the others keep the limit of the project."""


def effort(examples: int, steps: int = 30) -> settings:
    """Settings for a property (``steps`` is for state machines only): ``examples`` in the normal run."""
    checks = [HealthCheck.too_slow] if THOROUGH else []
    return settings(max_examples=examples * FACTOR, stateful_step_count=steps, deadline=None, suppress_health_check=checks)
