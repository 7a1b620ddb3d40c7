"""Tests, and the sandbox that they, the demo and the benchmark stand on."""
