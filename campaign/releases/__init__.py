"""Releases in the campaign: the operator and its log, the states that streams may have, and ramps of many streams."""
