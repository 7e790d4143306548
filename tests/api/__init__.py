"""The API over real sockets: uvicorn, httpx and websockets, with a real store and real models."""
