"""Model files: vetting, loading, reloading, and the registry of served models."""
