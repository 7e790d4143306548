"""The declared routes, one module for each family."""
