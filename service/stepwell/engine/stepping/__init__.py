"""Stepping: queue timesteps, batch them, run the model, commit the records, reply."""
