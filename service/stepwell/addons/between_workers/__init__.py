"""What add-ons need between workers that share a store: messages, a value that all follow, and leases of work."""
