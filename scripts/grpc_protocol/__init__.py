"""Compiles the gRPC service's messages."""
