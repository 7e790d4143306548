"""`stepwell adopt`: the manifest of a graph that already is stepwise, found by running it."""
