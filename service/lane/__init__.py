"""The fast lane: hot requests go from the socket's bytes to the engine by callback, and out in one write.

A request takes the lane where it came whole and nothing about it is unusual; any other goes uvicorn's and FastAPI's
way, untouched, and gets the very same answer there. `service/api/hot.py` is the table of hot routes, `heads` and
`lane` recognise their requests, `connection` keeps the order of answers and the bounds.
"""

from __future__ import annotations

from service.lane.connection import LaneConnection, lane_class
from service.lane.feed import FeedProtocol, feed_class

__all__ = ["FeedProtocol", "LaneConnection", "feed_class", "lane_class"]
