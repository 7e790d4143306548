"""The embedded store: a Redis or Valkey server of the service's own, where no other store is configured."""
