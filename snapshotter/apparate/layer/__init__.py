"""A layer that can be read before it is there."""
