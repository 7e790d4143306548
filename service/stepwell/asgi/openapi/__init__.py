"""The documentation of each route in `/openapi.json`."""
