"""Which decisions the original takes, such as comparisons, and which way each one went in a run."""
