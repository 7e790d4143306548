"""What a graph's operators show of it, without running it."""
