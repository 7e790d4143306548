"""Replay of recorded timesteps from files."""
