"""The demo: a trained model, held-out recordings, and a replay that checks every live prediction."""
