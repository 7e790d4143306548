"""A reset of all streams of a model."""
