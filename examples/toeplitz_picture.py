"""Convolutions as Toeplitz matrices, and the singular values of a trained layer: two pictures.

    python examples/toeplitz_picture.py [FOLDER]

writes toeplitz.png and spectrum.png. The first shows where each tap of a kernel stands in the matrix. The
second compares the spectrum of a layer, trained on 8 x 8 digits, with what is often taken for its norm: the
largest singular value of the kernel reshaped to [taps · c_in, c_out].
"""

import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from matplotlib.figure import Figure
from sklearn.datasets import load_digits

import funcnet as fn

LINE = {"w": jnp.arange(1.0, 4.0).reshape(3, 1, 1)}  # taps 1, 2, 3
PLANE = {"w": jnp.arange(1.0, 10.0).reshape(3, 3, 1, 1)}
PANELS = [
    ("kernel 3", LINE, (9,), {}),
    ("stride 2", LINE, (9,), {"stride": 2}),
    ("dilation 2", LINE, (9,), {"dilation": 2}),
    ("valid", LINE, (9,), {"padding": "valid"}),
    ("causal", LINE, (9,), {"padding": "causal"}),
    ("circular", LINE, (9,), {"padding_mode": "circular"}),
    ("3×3 over 5×5: blocks of blocks", PLANE, (5, 5), {}),
    ("3×3, stride 2", PLANE, (5, 5), {"stride": 2}),
]


def draw_matrices(path):
    figure = Figure(figsize=(11, 6), dpi=110, layout="constrained")
    for axes, (title, params, sizes, options) in zip(figure.subplots(2, 4).flat, PANELS, strict=True):
        matrix = fn.conv.matrix(params, (*sizes, 1), **options)
        taps = int(params["w"].max())
        axes.imshow(jnp.where(matrix == 0, jnp.nan, matrix), cmap="viridis", vmin=1, vmax=taps)
        axes.set_title(f"{title}  {list(matrix.shape)}", fontsize=9)
        axes.set_xticks([i - 0.5 for i in range(matrix.shape[1])], [])
        axes.set_yticks([i - 0.5 for i in range(matrix.shape[0])], [])
        axes.grid(color="#dddddd", linewidth=0.5)
        axes.tick_params(length=0)
    figure.suptitle("The matrix T(w) of a convolution: one colour for each tap, white is zero")
    figure.savefig(path)


def trained_layer():
    """The second convolution, 16 to 16 channels over 8 x 8, after 300 steps on digits."""
    digits: Any = load_digits()
    images, labels = jnp.asarray(digits.images[..., None] / 16.0, jnp.float32), jnp.asarray(digits.target)
    config = fn.nets.convnet.Config((8, 8, 1), channels=(16,), depth=2, hidden=32)

    def loss(params, batch, key):
        rows = jax.random.choice(key, len(images), (64,))
        logits = fn.nets.convnet.apply(params, images[rows], config)
        return fn.cross_entropy.apply(logits, labels[rows]).mean()

    optimizer = optax.adam(1e-3)
    params = fn.nets.convnet.init(jax.random.key(0), config)
    state = fn.train.init(params, optimizer, key=jax.random.key(1))
    step = fn.train.make_step(loss, optimizer)
    for _ in range(300):
        state, _ = step(state, None)
    return state.params["stages"][0][1]


def draw_spectrum(path):
    layer = trained_layer()
    exact = fn.conv.operator(layer, (8, 8, 16))
    circular = fn.conv.operator(layer, (8, 8, 16), padding_mode="circular")
    norm = exact.norm()
    reshaped = jnp.linalg.svd(layer["w"].reshape(-1, 16), compute_uv=False)[0]
    figure = Figure(figsize=(8, 4.5), dpi=110, layout="constrained")
    axes = figure.subplots()
    axes.plot(exact.singular_values(), label="zero border: all 1,024 singular values")
    axes.plot(circular.singular_values(), "--", label="circular border, frequency by frequency")
    axes.axhspan(float(norm.lower), float(norm.upper), color="#228833", alpha=0.6, label="certified norm")
    axes.axhline(float(reshaped), color="#cc6677", label="the kernel, reshaped: not the norm")
    axes.set(xlabel="index", ylabel="singular value", title="A 3×3 convolution, 16→16, trained on digits")
    axes.legend(frameon=False)
    figure.savefig(path)
    print(
        f"norm in [{norm.lower:.3f}, {norm.upper:.3f}]; of the reshaped kernel {reshaped:.3f}, "
        f"{abs(reshaped / norm.lower - 1):.0%} off; condition {exact.condition():.0f}, rank {exact.rank()}"
    )


if __name__ == "__main__":
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
    folder.mkdir(parents=True, exist_ok=True)
    draw_matrices(folder / "toeplitz.png")
    draw_spectrum(folder / "spectrum.png")
    print(f"wrote {folder / 'toeplitz.png'} and {folder / 'spectrum.png'}")
