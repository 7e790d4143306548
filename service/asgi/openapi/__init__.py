"""What `/openapi.json` says of each route."""
