"""The doors, through real sockets: uvicorn, httpx, websockets, a real store, real models."""
