"""The commands on the live streams of a running service, over HTTP."""
