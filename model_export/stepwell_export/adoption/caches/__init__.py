"""Caches that grow with every timestep, as states of a declared length."""
