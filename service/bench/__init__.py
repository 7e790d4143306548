"""Load on a running service, for `stepwell bench`."""
