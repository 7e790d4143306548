"""Checks of the store: its settings and our permissions."""
