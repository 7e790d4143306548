"""Finds by running a sequence graph which axes are time and batch, and what its sizes decide."""
