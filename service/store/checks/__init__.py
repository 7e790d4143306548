"""What the store must be: settings that lose nothing, permissions that suffice."""
