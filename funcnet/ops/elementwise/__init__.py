"""Functions of each element alone: those without parameters lie in one file, and are named here."""

from funcnet.ops.elementwise.activations import *  # noqa: F403
