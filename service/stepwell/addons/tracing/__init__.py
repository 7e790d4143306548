"""Traces of sampled requests, made after the fact from times that are measured anyway, and sent to an OTLP receiver."""
