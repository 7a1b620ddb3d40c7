"""Measures what the deployment does, on real servers that wait for their disks.

One module per figure (`throughput`, `latency`); each offers `measure(bench) -> Section`.
"""
