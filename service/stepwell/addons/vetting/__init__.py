"""Vetting: a new model file is loaded in a separate process first, which may crash in the place of the service."""
