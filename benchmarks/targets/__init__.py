"""The servers that are compared, each a program of its own, as short as its framework's documentation has it."""
