"""The path of a batch of commands: from its deliveries to what was decided, appended and told."""
