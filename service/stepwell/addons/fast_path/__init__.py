"""The fast path: hot requests are parsed from the socket's bytes, submitted with a callback, and answered in one write.

A complete request with nothing unusual takes the fast path. Every other request is handled by uvicorn and FastAPI,
which respond byte for byte the same. The hot routes are those of `hot_step_routes` and of other add-ons; `header_cache`
and `hot_requests` recognize their requests; `fast_http` keeps the order of responses and the limits, and `fast_feed`
those of live feeds.
"""
