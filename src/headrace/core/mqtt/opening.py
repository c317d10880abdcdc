"""What a CONNECT asks for and what is granted of it: client id, session expiry, will, keep-alive, sizes.

Owns these rules, as one function of the packet and the broker's terms. Touches no session: ``connection`` does with what is granted here.
"""

from headrace.core.mqtt.capture import addressed
from headrace.core.mqtt.granted import Granted, Refusal
from headrace.core.mqtt.host import Host
from headrace.core.mqtt.ops import Stored, StoredWill
from headrace.core.mqtt.session import NEVER
from headrace.core.mqtt.terms import Terms
from headrace.wire.mqtt import encoding
from headrace.wire.mqtt import properties as prop
from headrace.wire.mqtt.packets import Connect
from headrace.wire.mqtt.properties import Properties
from headrace.wire.mqtt.reasons import Reason


def grant(asked: Connect, host: Host, terms: Terms) -> Granted | Refusal:
    """The version is one of ours already."""
    found = asked.properties
    client_id, properties = asked.client_id, Properties()
    if prop.AUTHENTICATION_METHOD in found:
        return Refusal(Reason.BAD_AUTHENTICATION_METHOD, "there is no such authentication method here")
    if not client_id:
        if asked.version == 4 and not asked.clean_start:
            return Refusal(Reason.CLIENT_IDENTIFIER_NOT_VALID)  # 3.1.1 [MQTT-3.1.3-8]
        client_id = host.assigned_id()
        properties[prop.ASSIGNED_CLIENT_IDENTIFIER] = client_id  # [MQTT-3.2.2-16]
    reason = host.authenticate(asked)
    if reason:
        return Refusal(reason, "the user name or password is not known, or not allowed here")
    if asked.will is not None and asked.will.topic.startswith("$") and addressed(asked.will.topic) is None:
        return Refusal(Reason.TOPIC_NAME_INVALID, "topics that begin with $ are the broker's own")
    seconds, most = asked.keep_alive_s, terms.keep_alive_s_max
    if asked.version == 5 and most and (not seconds or seconds > most):
        properties[prop.SERVER_KEEP_ALIVE] = seconds = most  # [MQTT-3.2.2-21]
    if asked.version == 5:
        properties[prop.RECEIVE_MAXIMUM] = terms.receive_maximum
        properties[prop.MAXIMUM_PACKET_SIZE] = terms.packet_bytes_max
        if terms.topic_alias_maximum:
            properties[prop.TOPIC_ALIAS_MAXIMUM] = terms.topic_alias_maximum
    expiry_s = found.get(prop.SESSION_EXPIRY_INTERVAL, 0) if asked.version == 5 else 0 if asked.clean_start else NEVER
    if bound := found.get(prop.MAXIMUM_PACKET_SIZE, 0):
        told = properties | {prop.SESSION_EXPIRY_INTERVAL: 0} if expiry_s else properties
        if len(encoding.connack(5, True, Reason.SUCCESS, told)) > bound:  # [MQTT-3.1.2-24]
            return Refusal(Reason.PACKET_TOO_LARGE, "what a CONNACK says does not fit into the maximum packet size of this client")
    return Granted(
        client_id=client_id,
        properties=properties,
        expiry_s=expiry_s,
        will=_stored_will(asked, client_id),
        keep_alive_ms=seconds * 1500,  # [MQTT-3.1.2-22]
        receive_maximum=found.get(prop.RECEIVE_MAXIMUM, 65_535),
        alias_max=min(found.get(prop.TOPIC_ALIAS_MAXIMUM, 0), terms.topic_alias_maximum),
        problems=bool(found.get(prop.REQUEST_PROBLEM_INFORMATION, 1)),
    )


def _stored_will(asked: Connect, client_id: str) -> StoredWill | None:
    will = asked.will
    if will is None:
        return None
    forwarded = {id: value for id, value in will.properties.items() if id != prop.WILL_DELAY_INTERVAL} or None
    kept = Stored(will.topic, will.payload, will.qos, will.retain, forwarded, 0, client_id)
    return StoredWill(kept, will.properties.get(prop.WILL_DELAY_INTERVAL, 0), will.properties.get(prop.MESSAGE_EXPIRY_INTERVAL, 0))
