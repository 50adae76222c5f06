"""What makers say of their accelerators: the figures that a step time is estimated from.

Nothing here is measured. `near` and `far` are bytes a second that one chip sends: over the links that join
`joined` chips, along one axis of them, and over the network beyond.
"""

import dataclasses

__all__ = ["MACHINES", "Machine"]


@dataclasses.dataclass(frozen=True)
class Machine:
    """One chip, and how it is joined to others.

    Attributes:
        flops: floating-point operations a second, of products in bfloat16 without sparsity.
        memory: bytes that it holds.
        bandwidth: bytes a second between it and its memory.
        near: bytes a second that it sends over fast links: along one axis of a TPU's torus, in a ring, both
            ways together; of a GPU into its switch.
        far: bytes a second that it sends beyond them.
        joined: chips that fast links join.
        source: of these figures.
    """

    flops: float
    memory: float
    bandwidth: float
    near: float
    far: float
    joined: int
    source: str


# A TPU's links: its bandwidth both ways / 2, over the axes of its torus (2, of v5p 3). A GPU's: NVLink's / 2.
_TPU = "cloud.google.com/tpu/docs, read in November 2026"
_GPU = "NVIDIA's, after jax-ml.github.io/scaling-book/gpus; far: a port of 400 Gb/s"
MACHINES: dict[str, Machine] = {
    "v5e": Machine(1.97e14, 16e9, 8.19e11, 1e11, 3.125e9, 256, _TPU),
    "v5p": Machine(4.59e14, 95e9, 2.765e12, 2e11, 6.25e9, 8960, _TPU),
    "v6e": Machine(9.18e14, 32e9, 1.638e12, 2e11, 1.25e10, 256, f"{_TPU}; far: from memory, unconfirmed"),
    "h100": Machine(9.89e14, 80e9, 3.35e12, 4.5e11, 5e10, 8, _GPU),
    "h200": Machine(9.89e14, 141e9, 4.8e12, 4.5e11, 5e10, 8, _GPU),
    # Of memory 180 GB, as MLPerf's systems say (inference_results_v6.0, nebius_b200_n1); the book says 192.
    "b200": Machine(2.25e15, 180e9, 8e12, 9e11, 5e10, 8, _GPU),
}
