"""Writes the Kubernetes manifests and the values of the Helm chart, from the facts of compose and of the settings."""
