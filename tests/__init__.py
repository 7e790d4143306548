"""Stepwell's tests; they mirror the tree. `tests.graphs` builds the small models that they run."""
