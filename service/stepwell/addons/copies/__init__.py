"""Copies of a stream: forks, snapshots, and states that are read and set."""
