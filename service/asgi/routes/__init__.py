"""The declared routes, a module for each family."""
