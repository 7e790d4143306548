"""Alarms from committed predictions: `stepwell alert`."""
