"""Two models on the same recorded data, and how far their outputs differ."""
