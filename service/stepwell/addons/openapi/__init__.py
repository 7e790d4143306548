"""The OpenAPI document. The routes read raw requests, so that FastAPI cannot derive it."""
