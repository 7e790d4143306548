"""Rollouts: a stream is run by the model's own predictions, which become its inputs."""
