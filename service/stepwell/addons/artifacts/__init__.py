"""Artifacts: model files that are kept by fingerprint, so that every replica can load what a record names."""
