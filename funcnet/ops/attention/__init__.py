"""Attention, the layer around it, and what it is told of positions."""
