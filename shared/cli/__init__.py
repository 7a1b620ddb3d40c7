"""For people at a terminal: the `consent` command, and what the services' own share."""
