"""The chaos campaign through the clients that users have."""
