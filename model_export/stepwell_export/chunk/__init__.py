"""Chunks: several timesteps of a stream in one run of a graph with a time axis, made of a step graph."""
