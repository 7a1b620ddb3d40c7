"""Sends replies to whatever address a sender gave, at nobody else's cost."""
