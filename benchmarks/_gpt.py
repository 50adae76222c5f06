"""The GPT that the benchmarks train, its weights in NumPy, and the same in PyTorch as its users write it.

The model of GPT-2: learned positions, layer norm, gelu by tanh, biases, tied head.
"""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Tree = dict[str, Any]


@dataclass(frozen=True)
class Size:
    """Of a model, and of its batch: `batch` sequences of t tokens, and what follows each token."""

    layers: int
    heads: int
    d: int
    t: int
    batch: int
    vocabulary: int = 65


def config(size: Size, **options: Any) -> Any:
    """The model's Config in funcnet."""
    from funcnet.nets import transformer

    return transformer.Config(
        size.vocabulary,
        context=size.t,
        layers=size.layers,
        heads=size.heads,
        d=size.d,
        norm="layer",
        mlp="gelu_tanh",
        positions="learned",
        **options,
    )


def weights(size: Size) -> Tree:
    """The initial weights in NumPy, in the layout of funcnet: N(0, 0.02²), as GPT-2 draws them."""
    import numpy as np

    rng = np.random.default_rng(0)
    layers, heads, d, e = size.layers, size.heads, size.d, size.d // size.heads

    def normal(*shape: int) -> Tree:
        return {"w": 0.02 * rng.standard_normal(shape, np.float32)}

    def linear(d_in: Sequence[int], d_out: Sequence[int]) -> Tree:
        return normal(layers, *d_in, *d_out) | {"b": np.zeros((layers, *d_out), np.float32)}

    def norm(*lead: int) -> Tree:
        return {"w": np.ones((*lead, d), np.float32), "b": np.zeros((*lead, d), np.float32)}

    attention = {name: linear([d], [heads, e]) for name in "qkv"}
    blocks = {
        "norm1": norm(layers),
        "attention": attention | {"o": linear([heads, e], [d])},
        "norm2": norm(layers),
        "up": linear([d], [4 * d]),
        "down": linear([4 * d], [d]),
    }
    tables = {"tokens": normal(size.vocabulary, d), "positions": normal(size.t, d)}
    return tables | {"blocks": blocks, "norm": norm()}


def batch(size: Size) -> tuple[Any, Any]:
    """Tokens [batch, t], and what follows each."""
    import numpy as np

    rng = np.random.default_rng(1)
    ids = rng.integers(0, size.vocabulary, (size.batch, size.t + 1)).astype(np.int32)
    return ids[:, :-1], ids[:, 1:]


def by_torch(size: Size) -> Any:
    """The model as a PyTorch module with the weights of `weights`.

    ``model(ids, cache=None, at=0)`` gives logits [n, t, v]. With a cache, a preallocated pair of arrays
    [n, h, context, e] for each block, the ids stand at the positions from `at` on, and the logits are those
    of the last one [n, v].
    """
    torch: Any = importlib.import_module("torch")
    nn, functional = torch.nn, torch.nn.functional

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm1, self.norm2 = nn.LayerNorm(size.d), nn.LayerNorm(size.d)
            self.qkv, self.o = nn.Linear(size.d, 3 * size.d), nn.Linear(size.d, size.d)
            self.up, self.down = nn.Linear(size.d, 4 * size.d), nn.Linear(4 * size.d, size.d)

        def forward(self, x: Any, cache: Any, at: int) -> Any:
            n, t, d = x.shape
            heads = (part.view(n, t, size.heads, -1) for part in self.qkv(self.norm1(x)).split(d, 2))
            q, k, v = (part.transpose(1, 2) for part in heads)
            if cache is not None:
                cache[0][:, :, at : at + t], cache[1][:, :, at : at + t] = k, v
                k, v = cache[0][:, :, : at + t], cache[1][:, :, : at + t]
            y = functional.scaled_dot_product_attention(q, k, v, is_causal=t > 1)
            x = x + self.o(y.transpose(1, 2).reshape(n, t, d))
            return x + self.down(functional.gelu(self.up(self.norm2(x)), approximate="tanh"))

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.tokens, self.positions = nn.Embedding(size.vocabulary, size.d), nn.Embedding(size.t, size.d)
            self.blocks = nn.ModuleList([Block() for _ in range(size.layers)])
            self.norm = nn.LayerNorm(size.d)

        def forward(self, ids: Any, cache: Any = None, at: int = 0) -> Any:
            x = self.tokens(ids) + self.positions.weight[at : at + ids.shape[1]]
            for i, block in enumerate(self.blocks):
                x = block(x, None if cache is None else cache[i], at)
            if cache is not None:
                x = x[:, -1]
            return functional.linear(self.norm(x), self.tokens.weight)

    model, tree, d = Model(), weights(size), size.d

    def put(module: Any, w: Any, b: Any = None) -> None:
        module.weight.data = torch.from_numpy(w).contiguous()
        if b is not None:
            module.bias.data = torch.from_numpy(b).contiguous()

    put(model.tokens, tree["tokens"]["w"])
    put(model.positions, tree["positions"]["w"])
    put(model.norm, tree["norm"]["w"], tree["norm"]["b"])
    blocks = tree["blocks"]
    for i, block in enumerate(model.blocks):
        for name in ("norm1", "norm2"):
            put(getattr(block, name), blocks[name]["w"][i], blocks[name]["b"][i])
        for name in ("up", "down"):
            put(getattr(block, name), blocks[name]["w"][i].T, blocks[name]["b"][i])
        a = blocks["attention"]
        put(block.o, a["o"]["w"][i].reshape(d, d).T, a["o"]["b"][i])
        rows = [torch.from_numpy(a[name]["w"][i].reshape(d, d).T) for name in "qkv"]
        biases = [torch.from_numpy(a[name]["b"][i].reshape(d)) for name in "qkv"]
        block.qkv.weight.data, block.qkv.bias.data = torch.cat(rows), torch.cat(biases)
    return model


def agreement(losses: Sequence[float], tolerance: float) -> str:
    """The first loss, and whether all are equal to it within a relative tolerance."""
    error = max(abs(loss - losses[0]) for loss in losses) / losses[0]
    verdict = f"equal to {error:.0e}" if error <= tolerance else f"NOT EQUAL: {[*losses]}"
    return f"{losses[0]:.5f}, {verdict}"
