"""What is built on the service, or on its client: nothing of the service imports an add-on."""
