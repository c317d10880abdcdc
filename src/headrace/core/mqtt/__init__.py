"""What MQTT means: topics, subscriptions, sessions, retained messages, wills, and who gets what. Machines only: no socket, no clock, no disk."""
