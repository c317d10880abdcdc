"""Bugs of MQTT in a cluster: what is acknowledged when, who has a session, and what outlives its owner."""

from typing import Final

from headrace.sim.mutants.planting import Edit, Mutant

MQTT: Final = (
    Mutant(
        name="puback-before-other-brokers",
        wrong="a publish is acknowledged although other brokers, who have subscribers, do not have it yet",
        notices=("M1",),
        edits=(Edit("core.mqtt.cluster_router:ClusterRouter.awaits", " or self.spreads(topic, retain)", ""),),
        net="mqtt",
    ),
    Mutant(
        name="puback-before-the-inbox-is-durable",
        wrong="what was asked for is answered before the journal of the session partitions is durable",
        notices=("M1", "M7"),
        edits=(Edit("gateways.mqtt.hub:Hub.committed", "round.answers.append((answer, unsure))", "answer()"),),
        net="mqtt",
    ),
    Mutant(
        name="takeover-without-fencing",
        wrong="the connection whose session another one has taken over goes on",
        notices=("M8",),
        edits=(Edit("core.mqtt.router:Router.connect", "replaced.replaced(Reason.SESSION_TAKEN_OVER)", "pass"),),
        net="mqtt",
    ),
    Mutant(
        name="old-owner-keeps-its-sessions",
        wrong="a broker that has lost a session partition serves its clients on",
        notices=("M8", "M7", "M1", "error"),
        edits=(Edit("gateways.mqtt.cluster:ClusterHub._unserved", "self.router.drop(number)", "pass"),),
        net="mqtt",
    ),
    Mutant(
        name="will-published-after-each-move",
        wrong="that a will was published is not journalled",
        notices=("M6", "K9"),
        edits=(Edit("core.mqtt.shard:Shard.will_done", "self._note(WillDone(client_id))", "pass"),),
        net="mqtt",
    ),
    Mutant(
        name="will-done-before-others-have-it",
        wrong="a will is done before other brokers have it, and lost with its broker",
        notices=("M6",),
        edits=(Edit("core.mqtt.cluster_router:ClusterRouter._publish_will", "self._give_will(will", "everywhere()\nself._give_will(will"),),
        net="mqtt",
    ),
    Mutant(
        name="will-in-spite-of-a-goodbye",
        wrong="the will of a client that has said goodbye is published",
        notices=("M6",),
        edits=(Edit("core.mqtt.connection:Connection._on_disconnect", "with_will=said.reason != 0", "with_will=True"),),
        net="mqtt",
    ),
    Mutant(
        name="retained-where-it-was-written",
        wrong="the owner of a topic does not keep what is retained at another broker",
        notices=("M5",),
        edits=(Edit("core.mqtt.cluster_router:ClusterRouter.arrived", "self._retain(number, message)", "pass"),),
        net="mqtt",
    ),
    Mutant(
        name="retained-of-an-earlier-owner",
        wrong="what waited at an earlier owner of its publisher's session is retained after what the client has published since",
        notices=("M5",),
        edits=(Edit("core.mqtt.shard:Shard.outdated", "return 0 < epoch < latest", "return False"),),
        net="mqtt",
    ),
    Mutant(
        name="release-forgotten",
        wrong="that a client has a message of QoS 2 is not journalled",
        notices=("M3", "M6"),
        edits=(Edit("core.mqtt.shard:Shard.released", "self._note(Released(session.client_id, delivery.sequence))", "pass"),),
        net="mqtt",
    ),
    Mutant(
        name="source-forgotten",
        wrong="the next owner of a session partition does not know which messages of other brokers it has",
        notices=("M3", "K9"),
        edits=(Edit("core.mqtt.shard:Shard._queued", "self._caused(op.source)", "pass"),),
        net="mqtt",
    ),
    Mutant(
        name="origin-forgotten",
        wrong="a session partition does not know which publishes of QoS 2 and which wills it has taken from another owner",
        notices=("M3", "M6"),
        edits=(Edit("core.mqtt.cluster_router:ClusterRouter._repeated", "known = shard.knows(origin, tag)", "known = False"),),
        net="mqtt",
    ),
    Mutant(
        name="later-ones-kept",
        wrong="what is given up for a session partition leaves later messages of its publisher there, which come before it when it is sent again",
        notices=("M4", "M5"),
        edits=(Edit("core.mqtt.outward:_given_up", "part.message.publisher in whose", "False"),),
        net="mqtt",
    ),
    Mutant(
        name="newer-ones-first",
        wrong="a session partition takes a message though it has refused the one before, which counts as taken then",
        notices=("M1", "M5", "M6"),
        edits=(Edit("core.mqtt.cluster_router:ClusterRouter.arrived", "if sequence and not shard.has(incarnation, after):", "if False:"),),
        net="mqtt",
    ),
    Mutant(
        name="sent-again-by-the-next-owner",
        wrong="a connection that goes on at another owner is sent again what it was sent",
        notices=("M3",),
        edits=(Edit("core.mqtt.session:Session.go_on", "while self.inbox and self.inbox[0].sequence < sent:", "while False:"),),
        net="mqtt",
    ),
)
