"""Where state lives: records, the commit script, the store over the Redis protocol, the embedded server."""
