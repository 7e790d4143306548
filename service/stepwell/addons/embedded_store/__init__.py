"""The embedded store: a Redis or Valkey server of the service's own; and the service in a program, which uses it."""
