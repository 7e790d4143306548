"""The ASGI application's transports: they translate between HTTP or WebSocket messages and the engine."""
