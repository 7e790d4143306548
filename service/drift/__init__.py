"""Drift and data quality: how the inputs and outputs of live streams are distributed, and how far from the reference."""
