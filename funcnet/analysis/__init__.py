"""What a net, its loss and its data say of each other (docs/example_norms.md, docs/xray.md)."""

from funcnet.analysis import lowrank
from funcnet.analysis.example_norms import (
    Clipped,
    ExampleNorms,
    NoiseScale,
    clip_per_example,
    example_norms,
    noise_scale,
)
from funcnet.analysis.xray import XRay, xray

__all__ = [
    "Clipped", "ExampleNorms", "NoiseScale", "XRay", "clip_per_example", "example_norms", "lowrank",
    "noise_scale", "xray",
]  # fmt: skip
