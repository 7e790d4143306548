"""Model files: loading, vetting, the registry of served versions, reload."""
