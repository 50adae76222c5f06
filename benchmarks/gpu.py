"""GPT-2 124M and ResNet-50 on one GPU beside PyTorch: tokens and images per second, share of the peak.

Both compute in bfloat16 with parameters in float32. GPT-2: t = 1024, batch 32, AdamW; vocabulary 50,304,
which is 50,257 rounded up to a multiple of 128; funcnet with `linear_cross_entropy`, which never holds the
logits in full, PyTorch as nanoGPT trains it. ResNet-50: 224×224, batch 256, SGD with momentum; PyTorch with
automatic mixed precision. Each in a process of its own, in turn, from the same weights on the same batch.
"""

import importlib
import math
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from benchmarks import harness
from benchmarks.harness import WHOLE, Entrant, Measure, Process, Scale, Table
from benchmarks.models import DECAY, MOMENTUM, Gpt, Resnet

GPT2 = Gpt(12, heads=12, d=768, t=1024, batch=32, vocabulary=50304, rate=6e-4)
RESNET50 = Resnet(
    (64, 128, 256, 512), (3, 4, 6, 3), (224, 224, 3), 256, 1000, rate=1e-4, bottleneck=True, stem=7
)
MODELS: dict[str, Gpt | Resnet] = {"GPT-2 124M": GPT2, "ResNet-50": RESNET50}
PARTS = ("step", "loss and gradients", "loss")  # of every model, by both
OURS = ("step, logits in full", "head and loss, with gradients", "attention of one layer, with gradients")
PEERS = {
    # Two processes share the memory.
    "funcnet": Entrant(
        Process("benchmarks.gpu", ("funcnet",), (("XLA_PYTHON_CLIENT_PREALLOCATE", "false"),)),
        "funcnet",
        "funcnet",
    ),
    "PyTorch, torch.compile": Entrant(Process("benchmarks.gpu", ("torch",)), "torch", "torch"),
}
TOLERANCE = 2e-2  # of the losses after three steps: bfloat16; tests compare float32

Cases = dict[str, Callable[[], Callable[[], Any]]]


def run(scale: Scale) -> list[Table]:
    """Steps, their rates, and where the time goes; without a GPU one table that says so."""
    ours = PEERS["funcnet"].process
    with harness.running([ours]) as workers:
        device, is_gpu, peak = workers[ours].ask("device")
    if not is_gpu:
        rows = [{"step of": name, "funcnet": f"not measured: JAX has only {device} here"} for name in MODELS]
        return [Table("Training step on a GPU", rows)]
    steps = harness.race(PEERS, [f"{name}: step" for name in MODELS], scale, tolerance=TOLERANCE)
    idioms = "Losses after 3 steps agree to 2 %, or a row says refused. PyTorch's idiom: " + IDIOM
    tables = [
        Table(
            "Training step on a GPU", [{"": case, **row} for case, row in steps.items()], idioms, chart=True
        ),
        Table("Rates", _rates(steps, peak), _note(device, peak)),
    ]
    if scale == WHOLE:
        parts = [f"{name}: {part}" for name in MODELS for part in PARTS[1:]]
        single = scale._replace(generations=1)
        rows = harness.race(PEERS, parts, single, tolerance=TOLERANCE)
        rows |= harness.race({"funcnet": PEERS["funcnet"]}, [f"GPT-2 124M: {part}" for part in OURS], single)
        tables.append(Table("Where the time goes", [{"": case, **row} for case, row in rows.items()]))
    return tables


def _rates(steps: dict[str, dict[str, object]], peak: float | None) -> list[dict[str, object]]:
    """Of each timed step: examples per second, and the share of the peak."""
    rows: list[dict[str, object]] = []
    for name, model in MODELS.items():
        count = model.batch * (model.t if isinstance(model, Gpt) else 1)
        for who, cell in steps[f"{name}: step"].items():
            if isinstance(cell, Measure):
                rate = count / cell.median
                shares = [
                    f"{rate * flops / peak:.1%}" if peak else "peak not known" for flops in per_example(model)
                ]
                rows.append(
                    {
                        "": f"{name}, {who}",
                        "rate": f"{rate:,.0f} {'tokens' if isinstance(model, Gpt) else 'images'}/s",
                        **dict(
                            zip(
                                ("share of peak", "the masked half of attention counted"),
                                shares,
                                strict=False,
                            )
                        ),
                    }
                )
    return rows


def _note(device: str, peak: float | None) -> str:
    (causal, full), (image,) = map(per_example, (GPT2, RESNET50))
    return (
        f"{device}, {f'{peak / 1e12:.1f} TFLOP/s' if peak else 'peak not known'}. FLOPs of a step per token: "
        f"6 N + 6 · layers · d · t = {causal / 1e6:.0f} M without the products that causality masks, "
        f"6 N + 12 · layers · d · t = {full / 1e6:.0f} M with them; N counts every parameter. Per image, "
        f"6 per multiply-add of the forward pass, but 4 in the first convolution: {image / 1e9:.1f} G. "
        "Goal on an H100: 470,000 tokens/s, 1.15 times PyTorch."
    )


def per_example(model: Gpt | Resnet) -> tuple[int, ...]:
    """FLOPs of a training step per token or image."""
    return flops_per_token(model) if isinstance(model, Gpt) else (flops_per_image(model),)


def flops_per_token(model: Gpt) -> tuple[int, int]:
    """Of a training step, without and with the products of attention that causality masks.

    6 per parameter and token: 2 forward, 4 backward (two products for one). Attention takes, per layer, token
    and key, 2 d multiply-adds forward (Q Kᵀ and P V), so 3 · 4 d FLOPs for each of t keys, or of t / 2. The
    table of positions takes part in no product; it is counted, as in nanoGPT's and llm.c's N.
    """
    d = model.d
    blocks = model.layers * (12 * d * d + 13 * d)  # matrices 4 d² and 8 d²; biases 3 d, d, 4 d, d; norms 4 d
    parameters = blocks + (model.vocabulary + model.t) * d + 2 * d
    attention = 12 * model.layers * d * model.t
    return 6 * parameters + attention // 2, 6 * parameters + attention


def flops_per_image(model: Resnet) -> int:
    """Of a training step: every product three times, but no gradient of the image."""
    products = multiply_adds(model)
    return 6 * sum(products) - 2 * products[0]


def multiply_adds(model: Resnet) -> list[int]:
    """Of the forward pass of one image, padding counted: every convolution, the first one first; the head."""
    halved = lambda sides: [-(-side // 2) for side in sides]
    sides = [*model.image[:2]] if model.stem == 3 else halved(model.image[:2])
    counts = [math.prod(sides) * model.stem**2 * model.image[-1] * model.channels[0]]
    sides = sides if model.stem == 3 else halved(sides)  # pooling
    for c_in, c_out, stride in model.layout():
        for size, c, to, step in model.convolutions(c_in, c_out, stride):
            sides = halved(sides) if step == 2 else sides
            counts.append(math.prod(sides) * size**2 * c * to)
        if stride > 1 or c_in != c_out:
            counts.append(math.prod(sides) * c_in * c_out)
    return [*counts, model.layout()[-1][1] * model.classes]


# ---- funcnet ----------------------------------------------------------------------------------------------


def by_funcnet(model: Gpt | Resnet, dtype: str) -> Cases:
    """The parts of a step; each call gives arrays to wait for, the loss first."""
    import jax
    import jax.numpy as jnp
    import optax

    import funcnet as fn

    ours = importlib.import_module("benchmarks.peers.ours")
    batch, params = jax.tree.map(jnp.asarray, model.data()), partial(ours.params_of, model)

    def parts(objective: Callable[..., Any], optimizer: Any, state: Any = None) -> Cases:
        """Of objective(params, [model state,] batch)."""
        given = (batch,) if state is None else (state, batch)
        gradients = jax.value_and_grad(objective, has_aux=state is not None)

        def step() -> Callable[[], Any]:
            bare = lambda *args: objective(*args[:-1])  # without the key
            update = fn.train.make_step(bare, optimizer, guard=False)
            now = fn.train.init(params(), optimizer, key=jax.random.key(0), model_state=state)
            return ours.repeated(update, now, batch)

        return {
            "step": step,
            "loss and gradients": lambda: partial(jax.jit(gradients), params(), *given),
            "loss": lambda: partial(jax.jit(objective), params(), *given),
        }

    if isinstance(model, Resnet):
        sizes = model.image, model.channels, model.blocks, model.classes, model.stem
        config = fn.nets.resnet.Config(*sizes, bottleneck=model.bottleneck, padding="symmetric", dtype=dtype)

        def stateful(params: Any, state: Any, batch: Any) -> Any:
            logits, state = fn.nets.resnet.apply(params, state, batch[0], config, train=True)
            return fn.cross_entropy.apply(logits, batch[1]).mean(), (state, {})

        return parts(stateful, optax.sgd(model.rate, MOMENTUM), fn.nets.resnet.init_state(config))

    transformer, config = fn.nets.transformer, ours.gpt_config(model, dtype=dtype)
    optimizer = optax.adamw(model.rate, b2=0.95, weight_decay=DECAY)

    def lean(params: Any, batch: Any) -> Any:
        x = transformer.hidden(params, batch[0], config)
        return head(x, transformer.head(params, config), batch[1])

    def plain(params: Any, batch: Any) -> Any:
        return fn.cross_entropy.apply(transformer.apply(params, batch[0], config), batch[1]).mean()

    def head(x: Any, w: Any, labels: Any) -> Any:
        return fn.linear_cross_entropy.apply(x, w, labels).mean()

    def attention(q: Any, k: Any, v: Any) -> Any:
        return fn.attention.apply(q, k, v, causal=True).astype(jnp.float32).sum()

    def drawn(*shape: int) -> Any:
        return jax.random.normal(jax.random.key(0), shape, config.dtype)

    shape = model.batch, model.t, model.heads, model.d // model.heads
    return parts(lean, optimizer) | {
        "step, logits in full": parts(plain, optimizer)["step"],
        "head and loss, with gradients": lambda: partial(
            jax.jit(jax.value_and_grad(head, (0, 1))),
            drawn(model.batch, model.t, model.d),
            drawn(model.d, model.vocabulary),
            batch[1],
        ),
        "attention of one layer, with gradients": lambda: partial(
            jax.jit(jax.value_and_grad(attention, (0, 1, 2))), *[drawn(*shape)] * 3
        ),
    }


# ---- PyTorch ----------------------------------------------------------------------------------------------

IDIOM = (
    "torch.compile, autocast to bfloat16, scaled_dot_product_attention, channels_last, fused optimizers, and "
    "TF32 where float32 is left: "
    "https://docs.pytorch.org/tutorials/recipes/recipes/tuning_guide.html"
)


def by_torch(model: Gpt | Resnet, dtype: str, device: str) -> Cases:
    """The parts of a step, compiled where there is a GPU."""
    torch: Any = importlib.import_module("torch")
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.benchmark = True
    x, labels = (torch.from_numpy(part).to(device) for part in model.data())
    x, labels = x.permute(0, 3, 1, 2) if isinstance(model, Resnet) else x.long(), labels.long().flatten()

    def network() -> Any:
        if isinstance(model, Gpt):
            return importlib.import_module("benchmarks.peers.torch").gpt(model).to(device)
        return resnet_in_torch(model).to(device, memory_format=torch.channels_last)

    def loss_of(net: Any) -> Callable[[], Any]:
        def loss() -> Any:
            with torch.autocast(device, getattr(torch, dtype), enabled=dtype != "float32"):
                return torch.nn.functional.cross_entropy(net(x).flatten(0, -2), labels)

        return torch.compile(loss) if device == "cuda" else loss

    def gradients(net: Any) -> Callable[[], Any]:
        loss = loss_of(net)

        def call() -> Any:
            net.zero_grad(set_to_none=True)
            value = loss()
            value.backward()
            return value.detach()

        return call

    def step() -> Callable[[], Any]:
        net = network()
        if isinstance(model, Gpt):
            optimizer = torch.optim.AdamW(
                net.parameters(), model.rate, betas=(0.9, 0.95), weight_decay=DECAY, fused=True
            )
        else:
            optimizer = torch.optim.SGD(net.parameters(), model.rate, MOMENTUM, fused=True)
        backward = gradients(net)

        def call() -> Any:
            value = backward()
            optimizer.step()
            return value

        return call

    return {
        "step": step,
        "loss and gradients": lambda: gradients(network()),
        "loss": lambda: torch.no_grad()(loss_of(network())),
    }


def resnet_in_torch(model: Resnet) -> Any:
    """The model as torchvision writes it, with its weights."""
    torch: Any = importlib.import_module("torch")
    nn, weights = torch.nn, model.weights()

    def conv(leaves: Any, stride: int = 1) -> Any:
        w = torch.from_numpy(leaves["w"]).permute(3, 2, 0, 1)
        layer = nn.Conv2d(w.shape[1], w.shape[0], w.shape[2], stride, w.shape[2] // 2, bias=False)
        layer.weight.data = w.contiguous()
        return layer

    def norm(leaves: Any) -> Any:  # its gain is 1 and its bias 0, as those of the weights
        return nn.BatchNorm2d(len(leaves["w"]))

    class Block(nn.Module):
        def __init__(self, leaves: Any, sizes: tuple[int, int, int]):
            super().__init__()
            layers = []
            for i, (_, _, _, stride) in enumerate(model.convolutions(*sizes), 1):
                layers += [conv(leaves[f"conv{i}"], stride), norm(leaves[f"norm{i}"]), nn.ReLU(inplace=True)]
            self.branch, self.relu = nn.Sequential(*layers[:-1]), layers[-1]
            self.shortcut = nn.Identity()
            if "project" in leaves:
                self.shortcut = nn.Sequential(conv(leaves["project"], sizes[2]), norm(leaves["norm"]))

        def forward(self, x: Any) -> Any:
            return self.relu(self.branch(x) + self.shortcut(x))

    stem = conv(weights["stem"]["conv"], 2 if model.stem == 7 else 1)
    pool = nn.MaxPool2d(3, 2, 1) if model.stem == 7 else nn.Identity()
    blocks = map(Block, weights["blocks"], model.layout())
    head = nn.Linear(*weights["head"]["w"].shape)
    head.weight.data = torch.from_numpy(weights["head"]["w"]).T.contiguous()
    head.bias.data.zero_()
    parts = stem, norm(weights["stem"]["norm"]), nn.ReLU(inplace=True), pool, *blocks
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)


# ---- the processes ----------------------------------------------------------------------------------------


def _serve_funcnet() -> None:
    import jax

    from funcnet import backend

    device = jax.devices()[0]
    kind = device.device_kind
    facts = kind, device.platform == "gpu", backend.peak_flops(kind, "bfloat16")
    harness.serve(
        lambda _, case: _part(case, lambda model: by_funcnet(model, "bfloat16")),
        check=lambda result: [float(jax.tree.leaves(result)[0])],
        others={"device": lambda: facts},
    )


def _serve_torch() -> None:
    torch: Any = importlib.import_module("torch")

    def make(_: str, case: str) -> Callable[[], Any]:
        if not torch.cuda.is_available():
            raise RuntimeError("torch sees no GPU")
        return _part(case, lambda model: by_torch(model, "bfloat16", "cuda"))

    harness.serve(make, check=lambda loss: [float(loss)], wait=lambda _: torch.cuda.synchronize())


def _part(case: str, cases: Callable[[Gpt | Resnet], Cases]) -> Callable[[], Any]:
    name, part = case.split(": ")
    return cases(MODELS[name])[part]()


if __name__ == "__main__":
    {"funcnet": _serve_funcnet, "torch": _serve_torch}[sys.argv[1]]()
