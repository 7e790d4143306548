"""A request once its bytes are there, whichever transport brought them; no web framework."""
