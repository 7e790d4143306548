"""Stepwell's service: every stream's state in Redis, every timestep applied exactly once."""
