"""A worker as a process: sessions, leases, its observer, and what operators ask it."""
