"""Trials of a release in the engine: where streams move, and how the two versions of a pair compare."""
