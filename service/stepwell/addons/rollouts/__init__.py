"""Rollouts: predictions fed back as inputs."""
