"""Recorded data into the streams of a running service, once, and their predictions into a file."""
