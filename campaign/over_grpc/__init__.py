"""The chaos campaign over gRPC."""
