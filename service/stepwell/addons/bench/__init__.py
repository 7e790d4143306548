"""The load generator of `stepwell bench`."""
