"""The campaign: steps streams under faults and checks every answer."""
