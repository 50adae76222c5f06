"""PyTorch on the CPU: eager, and compiled by `torch.compile`; images in its channels-last memory format."""

import copy
import importlib
import os
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from benchmarks.models import DECAY, MOMENTUM, Convnet, Encoder, Gpt, Mlp, Model, Resnet, one_block

torch: Any = importlib.import_module("torch")
nn, functional = torch.nn, torch.nn.functional

PACKAGE = "torch"
IDIOM = (
    "channels_last, zero_grad(set_to_none=True), scaled_dot_product_attention, and the optimizer's fused or "
    "foreach form, whichever is faster: https://docs.pytorch.org/tutorials/recipes/recipes/tuning_guide.html"
)

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0))))
if "AVX512" not in torch.backends.cpu.get_cpu_capability():  # there oneDNN 2.13 computes wrong gradients
    torch.backends.mkldnn.set_flags(False)


def train(model: Model) -> Callable[[], Any]:
    """An eager step per call; gives the loss before it."""
    net, loss, data = _parts(model)
    return _step(lambda x, y: loss(net(x), y), _optimizer(model, net), data)


def train_compiled(model: Model) -> Callable[[], Any]:
    """The same with the forward and the backward pass compiled, in the default mode; the first call compiles.

    The optimizer is not: compiled, it took as long as its fused form.
    """
    net, loss, data = _parts(model)
    return _step(torch.compile(lambda x, y: loss(net(x), y)), _optimizer(model, net), data)


def first(model: Gpt, loop: bool) -> dict[str, Callable[[Any], Any]]:
    """The first eager step; its layers are always a loop in Python."""
    del loop
    call = train(model)
    return {"run": lambda _: call()}


def gpt(model: Gpt) -> Any:
    """The module with the weights of the model.

    ``gpt(model)(ids, cache=None, at=0)`` gives logits [n, t, v]. With a cache, a preallocated pair of arrays
    [n, h, context, e] for each block, the ids stand at the positions from `at` on, and the logits are those
    of the last one [n, v].
    """
    return _Gpt(model)


def _step(value: Callable[[Any, Any], Any], optimizer: Any, data: tuple[Any, Any]) -> Callable[[], Any]:
    def call() -> Any:
        optimizer.zero_grad(set_to_none=True)
        loss = value(*data)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return call


def _parts(model: Model) -> tuple[Any, Any, Any]:
    """The module, the loss of its output and the target, and the batch."""
    x, y = map(torch.from_numpy, model.data())
    if isinstance(model, Encoder):
        return _Encoder(model), functional.mse_loss, (x, y)
    if isinstance(model, Gpt):
        flat = lambda logits, labels: functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
        return gpt(model), flat, (x.long(), y.long())
    if isinstance(model, Mlp):
        return _mlp(model), functional.cross_entropy, (x, y.long())
    net = _convnet(model) if isinstance(model, Convnet) else _Resnet(model)
    images = x.permute(0, 3, 1, 2)  # channels last in memory, as they come
    return net.to(memory_format=torch.channels_last), functional.cross_entropy, (images, y.long())


def _optimizer(model: Model, net: Any) -> Any:
    """The optimizer that models.py names, in the faster of its two forms for this module."""
    if isinstance(model, Mlp):
        make = partial(torch.optim.Adam, lr=model.rate)
    elif isinstance(model, Convnet | Resnet):
        make = partial(torch.optim.SGD, lr=model.rate, momentum=MOMENTUM)
    else:
        make = partial(torch.optim.AdamW, lr=model.rate, weight_decay=DECAY)

    def seconds(**form: bool) -> float:
        """The fastest of five updates of a copy."""
        params = list(copy.deepcopy(net).parameters())
        for leaf in params:
            leaf.grad = torch.zeros_like(leaf)
        optimizer, times = make(params, **form), []
        for _ in range(7):  # the first makes the state
            start = time.perf_counter()
            optimizer.step()
            times.append(time.perf_counter() - start)
        return min(times[2:])

    form = "fused" if seconds(fused=True) <= seconds(foreach=True) else "foreach"
    return make(net.parameters(), **{form: True})


def _mlp(model: Mlp) -> Any:
    *hidden, last = map(_linear, model.weights()["layers"])
    return nn.Sequential(*(part for layer in hidden for part in (layer, nn.ReLU())), last)


def _convnet(model: Convnet) -> Any:
    weights = model.weights()
    convs = [part for leaves in weights["convs"] for part in (_conv(leaves), nn.ReLU(), nn.MaxPool2d(2))]
    w, b = weights["head"]["w"], weights["head"]["b"]
    rows = w.reshape(*model.side, model.channels[-1], -1).transpose(2, 0, 1, 3)  # flat here is [c, h, w]
    return nn.Sequential(*convs, nn.Flatten(), _linear({"w": rows.reshape(w.shape), "b": b}))


class _Residual(nn.Module):
    def __init__(self, weights: Any, stride: int):
        super().__init__()
        self.conv1, self.norm1 = _conv(weights["conv1"], stride), _batch_norm(weights["norm1"])
        self.conv2, self.norm2 = _conv(weights["conv2"]), _batch_norm(weights["norm2"])
        self.shortcut = nn.Identity()
        if "project" in weights:
            self.shortcut = nn.Sequential(_conv(weights["project"], stride), _batch_norm(weights["norm"]))

    def forward(self, x: Any) -> Any:
        y = functional.relu(self.norm1(self.conv1(x)), inplace=True)
        y = self.norm2(self.conv2(y))
        y += self.shortcut(x)
        return functional.relu(y, inplace=True)


class _Resnet(nn.Module):
    def __init__(self, model: Resnet):
        super().__init__()
        weights = model.weights()
        self.stem = nn.Sequential(
            _conv(weights["stem"]["conv"]), _batch_norm(weights["stem"]["norm"]), nn.ReLU(inplace=True)
        )
        pairs = zip(weights["blocks"], model.layout(), strict=True)
        self.blocks = nn.Sequential(*(_Residual(leaves, stride) for leaves, (_, _, stride) in pairs))
        self.head = _linear(weights["head"])

    def forward(self, x: Any) -> Any:
        return self.head(functional.adaptive_avg_pool2d(self.blocks(self.stem(x)), 1).flatten(1))


class _Attention(nn.Module):
    """Self-attention with one map to queries, keys and values."""

    def __init__(self, heads: int, weights: Any):
        super().__init__()
        self.heads, d = heads, weights["o"]["w"].shape[-1]
        w = np.concatenate([weights[name]["w"].reshape(d, d) for name in "qkv"], 1)
        self.qkv = _linear({"w": w, "b": np.concatenate([weights[name]["b"].ravel() for name in "qkv"])})
        self.o = _linear({"w": weights["o"]["w"].reshape(d, d), "b": weights["o"]["b"]})

    def forward(self, x: Any, causal: bool, cache: Any = None, at: int = 0) -> Any:
        n, t, d = x.shape
        q, k, v = (part.view(n, t, self.heads, -1).transpose(1, 2) for part in self.qkv(x).split(d, 2))
        if cache is not None:
            cache[0][:, :, at : at + t], cache[1][:, :, at : at + t] = k, v
            k, v = cache[0][:, :, : at + t], cache[1][:, :, : at + t]
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=causal)
        return self.o(y.transpose(1, 2).reshape(n, t, d))


class _Block(nn.Module):
    def __init__(self, heads: int, weights: Any):
        super().__init__()
        self.norm1, self.norm2 = _layer_norm(weights["norm1"]), _layer_norm(weights["norm2"])
        self.attention = _Attention(heads, weights["attention"])
        self.mlp = nn.Sequential(_linear(weights["up"]), nn.GELU("tanh"), _linear(weights["down"]))

    def forward(self, x: Any, cache: Any, at: int) -> Any:
        x = x + self.attention(self.norm1(x), x.shape[1] > 1, cache, at)
        return x + self.mlp(self.norm2(x))


class _Gpt(nn.Module):
    def __init__(self, model: Gpt):
        super().__init__()
        weights = model.weights()
        self.tokens = nn.Embedding.from_pretrained(torch.from_numpy(weights["tokens"]["w"]), freeze=False)
        self.positions = nn.Parameter(torch.from_numpy(weights["positions"]["w"]))
        layers = [one_block(weights["blocks"], i) for i in range(model.layers)]
        self.blocks = nn.ModuleList([_Block(model.heads, layer) for layer in layers])
        self.norm = _layer_norm(weights["norm"])

    def forward(self, ids: Any, cache: Any = None, at: int = 0) -> Any:
        x = self.tokens(ids) + self.positions[at : at + ids.shape[1]]
        for i, block in enumerate(self.blocks):
            x = block(x, None if cache is None else cache[i], at)
        if cache is not None:
            x = x[:, -1]
        return functional.linear(self.norm(x), self.tokens.weight)


class _Encoder(nn.Module):
    def __init__(self, model: Encoder):
        super().__init__()
        weights = model.weights()
        self.attention = _Attention(model.heads, weights["attention"])
        self.norm1, self.norm2 = (_layer_norm(weights[name], 1e-12) for name in ("norm1", "norm2"))
        self.mlp = nn.Sequential(_linear(weights["up"]), nn.GELU(), _linear(weights["down"]))

    def forward(self, x: Any) -> Any:
        x = self.norm1(x + self.attention(x, causal=False))
        return self.norm2(x + self.mlp(x))


def _linear(leaves: Any) -> Any:
    """Its weight is [d_out, d_in]."""
    return _filled(nn.Linear(*leaves["w"].shape), leaves["w"].T, leaves["b"])


def _conv(leaves: Any, stride: int = 1) -> Any:
    """Padded as XLA's "same": at stride 2, an even side at its end alone; weight [c_out, c_in, h, w]."""
    size, _, c_in, c_out = leaves["w"].shape
    weight, bias = leaves["w"].transpose(3, 2, 0, 1), leaves.get("b")
    even = stride == 2 and size == 3
    padding = 0 if even else size // 2
    conv = _filled(nn.Conv2d(c_in, c_out, size, stride, padding, bias=bias is not None), weight, bias)
    return nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), conv) if even else conv


def _batch_norm(leaves: Any) -> Any:
    return _filled(nn.BatchNorm2d(len(leaves["w"]), eps=1e-5, momentum=0.1), leaves["w"], leaves["b"])


def _layer_norm(leaves: Any, eps: float = 1e-5) -> Any:
    return _filled(nn.LayerNorm(len(leaves["w"]), eps), leaves["w"], leaves["b"])


@torch.no_grad()
def _filled(layer: Any, weight: Any, bias: Any) -> Any:
    """A layer with other parameters."""
    layer.weight.copy_(torch.from_numpy(weight))
    if bias is not None:
        layer.bias.copy_(torch.from_numpy(bias))
    return layer
