"""What a net, its loss and its data say of each other: functions of a loss (docs/example_norms.md)."""

from funcnet.analysis import lowrank
from funcnet.analysis.example_norms import (
    Clipped,
    ExampleNorms,
    NoiseScale,
    clip_per_example,
    example_norms,
    noise_scale,
)

__all__ = [
    "Clipped", "ExampleNorms", "NoiseScale", "clip_per_example", "example_norms", "lowrank", "noise_scale",
]  # fmt: skip
