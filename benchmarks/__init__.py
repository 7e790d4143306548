"""Benchmarks of a durable step and of what it is compared with: `python -m benchmarks --help`."""
