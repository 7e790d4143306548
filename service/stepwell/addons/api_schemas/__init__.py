"""What describes the API, for `/openapi.json`, `/asyncapi.json` and the add-ons that document their own routes."""
