"""The store: records, the commit script, `StateStore` over the Redis protocol."""
