"""The fast path: hot requests are parsed from the socket's bytes, submitted with a callback, and answered in one write.

A complete request with nothing unusual takes the fast path. Every other request is handled by uvicorn and FastAPI,
which respond byte for byte the same. `stepwell.requests.hot_routes` is the table of hot routes; `header_cache` and
`hot_requests` recognize their requests; `pipeline` and `fast_http` keep the order of responses and the limits.
"""

from __future__ import annotations

from stepwell.protocols.fast_feed import FastFeedProtocol, fast_feed_class
from stepwell.protocols.fast_http import FastHttpProtocol, fast_http_class

__all__ = ["FastFeedProtocol", "FastHttpProtocol", "fast_feed_class", "fast_http_class"]
