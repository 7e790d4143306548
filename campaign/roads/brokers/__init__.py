"""The brokers as roads: each fills `in`, and reads `out` and `dead`."""
