"""What is known about the machine below: versions that compute wrong numbers, and the guard against them."""


def guard() -> None:
    """Set the XLA flag."""
