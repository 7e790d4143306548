"""Transports: translate between the wire and the engine, nothing else."""
