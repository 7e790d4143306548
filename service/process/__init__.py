"""What the operating system sees: one serving process, and the supervisor of several."""
