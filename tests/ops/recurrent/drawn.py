"""What the tests of recurrences share: sequences drawn by NumPy, and torch's layers over the same ones."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

RNG = np.random.default_rng(0)
LENGTHS = [7, 4]
MASK: Any = np.arange(7) < np.asarray(LENGTHS)[:, None]


def normal(*shape: int) -> Any:
    return jnp.asarray(RNG.standard_normal(shape), jnp.float32)


X = normal(2, 7, 3)
STATE: Any = {"h": normal(2, 5), "c": normal(2, 5)}


def cell(gates: int, *biases: str) -> dict[str, Any]:
    """Parameters of a cell with d = 3 and m = 5."""
    sizes = {"w": (3, 5 * gates), "u": (5, 5 * gates), "b": (5 * gates,), "c": (5,)}
    return {name: normal(*sizes[name]) for name in ("w", "u", *biases)}


def same(got: Any, want: Any, tolerance: float = 1e-5) -> None:
    jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, tolerance, tolerance), got, want)


def packed(name: str, reverse: bool, **options: Any) -> tuple[Any, Any, Any]:
    """A random layer of torch's: the weights of one direction, and what it gives of X and LENGTHS."""
    torch = pytest.importorskip("torch")
    layer = getattr(torch.nn, name)(3, 5, batch_first=True, bidirectional=True, **options)
    at = "_l0_reverse" if reverse else "_l0"
    weights = {
        kind: layer.state_dict()[kind + at].numpy()
        for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    }
    first = tuple(torch.from_numpy(np.stack([np.array(STATE[part])] * 2)) for part in "hc")
    given = torch.nn.utils.rnn.pack_padded_sequence(torch.from_numpy(np.array(X)), LENGTHS, batch_first=True)
    with torch.no_grad():
        y, last = layer(given, first if name == "LSTM" else first[0])
    y = torch.nn.utils.rnn.pad_packed_sequence(y, batch_first=True)[0].numpy()
    last = dict(zip("hc", last if name == "LSTM" else (last,), strict=False))
    state = {part: v[int(reverse)].numpy() for part, v in last.items()}
    return weights, y[..., 5:] if reverse else y[..., :5], state
