"""Stepwell's tests; they mirror the packages. `tests.graphs` builds the small models that they run."""
