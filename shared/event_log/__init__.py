"""The log, read: pages, the order of what arrives, and what is missing."""
