"""The commands on recorded data."""
