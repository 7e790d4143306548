"""The workers of all replicas on one store: what one of them reloads or unloads, all do."""
