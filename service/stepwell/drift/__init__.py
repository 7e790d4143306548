"""Drift and data quality: the distributions of live inputs and outputs, and their distance from the reference."""
