"""Commands to servers of the Redis protocol: connections, retries, Cluster, Sentinel."""
