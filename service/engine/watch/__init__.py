"""Watching: committed predictions, published to subscribers."""
