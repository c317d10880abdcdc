"""The broker on its event loop: catalogue, partition runtimes, subscriptions, sessions, transfers and the control verbs.

It interprets what the core machines decide and owns no decision itself. It never imports a gateway or the admin interface: those call its verbs and
give it sinks.
"""
