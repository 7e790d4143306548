"""Store transports: connections, retries, Sentinel."""
