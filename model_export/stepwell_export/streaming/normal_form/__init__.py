"""Brings a sequence graph into one plain form: attention written out, written-out loops rolled up, nodes in order."""
