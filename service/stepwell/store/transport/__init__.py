"""Store transports: connections, retries, Redis Cluster and Sentinel."""
