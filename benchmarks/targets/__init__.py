"""The servers that are compared, each as short as in its framework's documentation."""
