"""``python -m headrace.config`` prints docs/configuration.md."""

import sys

from headrace.config.reference import reference

sys.stdout.write(reference())
