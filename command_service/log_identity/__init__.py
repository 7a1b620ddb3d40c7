"""Which log this is, and whether it still has what was published of it."""
