"""The fast lane: hot requests go from the socket's bytes to the engine by callback, and out in one write.

A request takes the lane where it came whole and nothing about it is unusual; any other goes uvicorn's and FastAPI's
way, untouched, and gets the very same answer there. `service/requests/hot_routes.py` is the table of hot routes, `heads` and
`lane` recognise their requests, `connection` keeps the order of answers and the bounds.
"""

from __future__ import annotations

from service.protocols.fast_feed import FastFeedProtocol, fast_feed_class
from service.protocols.fast_http import FastHttpProtocol, fast_http_class

__all__ = ["FastFeedProtocol", "FastHttpProtocol", "fast_feed_class", "fast_http_class"]
