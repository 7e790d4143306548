"""The verification: the reference model on whole sequences against the step graph."""
