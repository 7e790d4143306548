"""What several rules and the walk through a Keras model have in common."""
