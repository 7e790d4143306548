"""Request handling after the bytes have been received, the same for every transport; no web framework."""
