"""The API over real sockets: uvicorn, httpx2 and websockets, with a real store and real models."""
