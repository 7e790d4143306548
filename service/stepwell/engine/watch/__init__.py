"""Watching: events of committed predictions for subscribers."""
