"""What events do to the read model, as pure functions."""
