"""Processes of the service: one serving process, and the supervisor of several."""
