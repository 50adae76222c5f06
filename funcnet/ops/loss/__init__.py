"""Losses, one number an example."""
