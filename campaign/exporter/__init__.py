"""Hostile models: generated for every front end, exported, and judged by their originals."""
