"""The exactly-once protocol: op ids, decisions, replays."""
