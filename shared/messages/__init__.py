"""What is said: commands, events, replies, queries, and the names by which they travel. Pure."""
