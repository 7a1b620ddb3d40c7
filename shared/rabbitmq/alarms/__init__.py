"""When the broker is short of memory or disk, and takes nothing from whoever publishes."""
