"""The exactly-once rules: operation ids, the decision table, replays."""
