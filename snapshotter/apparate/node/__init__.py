"""The node itself: what it can do and what it has."""
