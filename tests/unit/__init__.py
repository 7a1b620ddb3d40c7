"""What needs no server: rules, messages, documents; `make unit`."""
