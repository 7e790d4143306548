"""`stepwell connect`: timesteps from a broker or a file to a running service, and its predictions to another."""
