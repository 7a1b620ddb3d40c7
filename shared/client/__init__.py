"""For other services: send commands, ask queries, subscribe to events."""
