"""How timesteps become batches, run, and are committed."""
