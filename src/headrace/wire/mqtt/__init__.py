"""MQTT 3.1.1 and 5.0 as bytes: what a packet looks like and which bytes are none. No sockets, no sessions, no topics but their syntax."""
