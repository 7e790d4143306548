"""Runs with the state in the request: the caller keeps the state, and the service stores nothing."""
