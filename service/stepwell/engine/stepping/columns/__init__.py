"""Batches whose timesteps are kept in columns, one array per field, instead of one object per timestep."""
