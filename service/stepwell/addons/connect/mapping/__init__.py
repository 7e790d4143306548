"""What messages mean: their streams, positions and inputs."""
