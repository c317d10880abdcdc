"""The hot modules: those that the build compiles with mypyc where a C compiler is. Compiled or not they do the same."""

MODULES = (
    "headrace.wire.ingress",
    "headrace.wire.mqtt.publish",
    "headrace.wire.mqtt.properties",
    "headrace.wire.mqtt.parser",
    "headrace.wire.mqtt.encoding",
    "headrace.core.ranges",
    "headrace.core.queue.extents",
    "headrace.core.queue.journalling",
    "headrace.broker.lane",
    "headrace.broker.publisher",
    "headrace.storage.cache",
    "headrace.storage.entry",
    "headrace.storage.gathering",
    "headrace.storage.index",
    "headrace.storage.intake",
)
