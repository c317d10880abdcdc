"""Admin HTTP: the control verbs under ``/admin/api/``, ``/metrics``, and one live overview page, on the broker's own loop.

It turns HTTP into ``control`` messages and replies into JSON, and decides nothing. Importing this package is cheap; FastAPI comes with ``admin.app``.
"""
