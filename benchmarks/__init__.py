"""What a durable step costs, and what everything around it costs: `python -m benchmarks --help`."""
