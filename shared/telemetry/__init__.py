"""What workers tell their operators: logs, metrics, traces, and whether they are ready."""
