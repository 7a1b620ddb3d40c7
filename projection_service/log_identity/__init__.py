"""Which log the read model follows, and whether that still has what was projected."""
