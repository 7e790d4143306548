"""What the client and the service have in common: formats of bodies, ids as texts, and the words of outcomes."""
