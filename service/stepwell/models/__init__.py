"""Model files: loading, reloading, and the registry of served models."""
