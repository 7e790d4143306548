"""Checks of parsed bodies, whose errors show the fault: for rare bodies, and for what the typed decoders refuse."""
