"""A copy of all consents, kept by a process that asks all day."""
