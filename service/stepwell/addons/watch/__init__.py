"""Watching: events of committed predictions, for `/v1/watch`, server-sent events and `stepwell alert`."""
