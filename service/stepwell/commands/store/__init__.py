"""Commands about the store: its backups, and how large it has to be."""
