"""Every operation with its arguments split over the four devices of a mesh, each way that divides.

A row is a call whose sizes four divides. How it is split follows from the annotations of `apply`: a letter in
all leaves that have it; the batch, with parameters split by their first axis that divides (FSDP). The truth
is `reference` on one device.
"""

import contextlib
import inspect
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import funcnet as fn
from funcnet import _letters
from funcnet.ops.attention import rope
from tests.cases import B, Case, F, I, K, R, U, carried, case, cell, heads, mixture
from tests.laws import close, normal_like, on_floats

N, T, D, H, E, C = 4, 8, 8, 4, 4, 8
IMAGE = F(N, 8, 4, C)

CASES = [
    case("alibi", F(H), t=4, s=8),
    case("attention", F(N, T, H, E), F(N, T, H, E), F(N, T, H, E), causal=True, block=(4, 4)),
    case("attention", F(N, T, H, E), F(N, T, 2, E), F(N, T, 2, E), None, F(H), window=(2, 1), block=(4, 4)),
    case("attention", F(N, T, H, E), F(N, T, H, E), F(N, T, H, E), causal=True, segment_ids=I(3, N, T)),
    case("linear_attention", F(N, T, H, E), F(N, T, H, E), F(N, T, H, 8), U(N, T, H), chunk=4),
    case("multihead", heads(D, H, H, E, qk_norm=True), F(N, T, D), causal=True, rope=rope.Config()),
    case("multihead", heads(D, H, 2, E, sinks=True), F(N, T, D), causal=True, dropout_rate=0.5, key=K()),
    case("rope", F(N, T, H, E)),
    case("avg_pool", IMAGE, kernel=(2, 2)),
    case("conv", {"w": F(3, 3, C, 4), "b": F(4)}, IMAGE),
    case("conv", {"w": F(3, 1, C), "b": F(C)}, F(N, T, C), groups=C, padding="causal"),
    case("conv_transpose", {"w": F(3, 3, 4, C), "b": F(4)}, IMAGE, stride=2),
    case("fold", F(N, 4, 12), size=(8,), kernel=(3,), stride=2, padding="same"),
    case("lp_pool", IMAGE, kernel=(2, 2)),
    case("max_pool", IMAGE, kernel=(2, 2)),
    case("patches", F(N, T, 4), kernel=(3,), stride=2, padding="same"),
    case("bilinear", {"w": F(4, 8, 4), "b": F(4)}, F(N, 4), F(N, 8)),
    case("embedding", {"w": F(16, D)}, I(16, N, T), padding_index=2),
    case("linear", {"w": F(D, 12), "b": F(12)}, F(N, T, D)),
    case("linear", {"w": F(H, E, D), "b": F(D)}, F(N, T, H, E), inputs=2),
    case("linear", {"w": F(D, H, E), "b": F(H, E)}, F(N, T, D)),
    case("moe", mixture(D, 12, 4), F(N, T, D), capacity=1.0),
    case("moe", mixture(D, 4, 4, gated=False), F(N, T, D), k=1, renormalise=False),
    case("matmul", F(N, T, D), F(D, 12)),
    case("matmul", F(N, T, D), F(N, D, 4)),
    case("prelu", {"w": F(C)}, IMAGE),
    case("adaptive_avg_pool", IMAGE, size=(4, 2)),
    case("adaptive_max_pool", IMAGE, size=(4, 2)),
    case("grid_sample", IMAGE, F(N, 4, 4, 2)),
    case("pad", IMAGE, padding=((1, 3), (0, 0)), padding_mode="reflect"),
    case("pixel_shuffle", F(N, 4, 4, 8), factor=(2, 2)),
    case("pixel_unshuffle", IMAGE, factor=(2, 2)),
    case("resize", IMAGE, size=(12, 6)),
    case("binary_cross_entropy", F(N, T), U(N, T)),
    case("contrastive", F(N, D), F(N, D), F()),
    case("cross_entropy", F(N, T, 12), I(12, N, T), label_smoothing=0.1, ignore_index=3),
    case("ctc", F(N, T, 8), I(8, N, 3, low=1)),
    case("linear_cross_entropy", F(N, T, D), F(D, 16), I(16, N, T), label_smoothing=0.1, chunk=2),
    case("mse", F(N, D), F(N, D)),
    case("nll", F(N, T, 8), I(8, N, T)),
    case("batch_norm", {"w": F(C), "b": F(C)}, {"mean": F(C), "var": U(C)}, IMAGE, train=True),
    case("group_norm", {"w": F(C), "b": F(C)}, IMAGE, groups=4),
    case("instance_norm", {"w": F(C), "b": F(C)}, IMAGE),
    case("l2_norm", F(N, T, D)),
    case("layer_norm", {"w": F(D), "b": F(D)}, F(N, T, D)),
    case("log_softmax", F(N, D)),
    case("logsumexp", F(N, T, D), axis=1),
    case("rms_norm", {"w": F(D)}, F(N, T, D)),
    case("softmax", F(N, T, D), axis=1),
    case("dropout", F(N, T, D), rate=0.5, key=K()),
    case("gru", cell(3, D, 4, "b", "c"), F(N, T, D)),
    case("linear_recurrence", F(N, T, D), F(N, T, D, 4), F(N, D, 4)),
    case("lstm", cell(4, D, 4, "b"), F(N, T, D), carried(4, N), mask=B(N, T)),
    case("rnn", cell(1, D, 4, "b"), F(N, T, D)),
    case("deltas", F(N, T, D), width=3),
    case("istft", F(N, 8, 4, 2), n_fft=6, hop=2),
    case("lfilter", F(N, T), F(3), R(2)),
    case("log_mel", F(N, 64), rate=8000.0, n_fft=12, hop=4, mels=4, span=0.5, gain=10.0, offset=3.0),
    case("magnitude", F(N, T, 2)),
    case("mel", U(N, T, 16), rate=16000.0, mels=4),
    case("mfcc", F(N, 64), rate=8000.0, n_fft=12, hop=4, mels=4, coefficients=4, gain=10.0),
    case("power", F(N, T, 2)),
    case("pre_emphasis", F(N, T)),
    case("stft", F(N, 16), n_fft=6, hop=2),
    case("gelu", F(N, T, D)),
    case("swiglu", F(N, T, D), F(N, T, D)),
    case("drop_path", F(N, T, D), rate=0.5, key=K()),
    case("embedding_dropout", F(N, T, D), ids=I(16, N, T), vocabulary=16, rate=0.5, key=K()),
    case("spatial_dropout", F(N, T, D), rate=0.5, key=K()),
    case("huber", F(N, T), F(N, T)),
    case("cosine", F(N, D), F(N, D)),
]


class Split(NamedTuple):
    """How the arguments of a case lie on the mesh: a name, and a `jax.P` in the place of every leaf."""

    name: str
    specs: tuple[Any, ...]


def splits(case: Case) -> Iterator[Split]:
    """The ways in which four devices can hold the arguments of a case."""
    shapes = jax.eval_shape(lambda: case.draw()[0])
    hints = [p.annotation for p in inspect.signature(case.module.apply).parameters.values()]
    leaves = tuple(_named(hint, value) for hint, value in zip(hints, shapes, strict=False))
    is_leaf = lambda v: isinstance(v, list)
    every = jax.tree.leaves(leaves, is_leaf=is_leaf)
    sizes: dict[str, set[int]] = {}
    for name, n in (axis for leaf in every for axis in leaf):
        sizes.setdefault(name, set()).add(n)
    for letter in sorted(name for name, found in sizes.items() if all(n % 4 == 0 and n for n in found)):

        def of_leaf(leaf: Any, letter: str = letter) -> P:
            names = [name for name, _ in leaf]
            return P(*[None] * names.index(letter), "x") if letter in names else P()

        yield Split(letter, jax.tree.map(of_leaf, leaves, is_leaf=is_leaf))
    if any(isinstance(value, Mapping) for value in shapes):
        yield Split("fsdp", tuple(_fsdp(value) for value in shapes))


def _named(hint: Any, value: Any) -> Any:
    """For each leaf of an argument the letter and the size of each axis; of a group "*n" n0, n1 and so on."""
    if isinstance(value, Mapping):
        fields = _letters._fields(hint)
        return {name: _named(fields.get(name), part) for name, part in value.items()}
    if value is None:
        return None
    names, shape = [], value.shape
    dims = _letters._dims(hint, value.dtype)
    for dim in dims:
        count = len(shape) - len(dims) + 1
        stem = dim.lstrip("*").partition("_and_")[0]
        names += [f"{stem}{i}" for i in range(count)] if dim.startswith(("*", "...")) else [dim]
    return list(zip(names, shape, strict=False))


def _fsdp(value: Any) -> Any:
    """Of an array the batch is split, of a leaf of parameters the first axis that divides."""
    if not isinstance(value, Mapping):
        return value if value is None else P("x") if value.shape else P()
    first = lambda leaf: next((i for i, n in enumerate(leaf.shape) if n % 4 == 0), None)
    spec = lambda i: P() if i is None else P(*[None] * i, "x")
    return jax.tree.map(lambda leaf: spec(first(leaf)), value)


def law(case: Case, split: Split, kind: AxisType) -> Any:
    """Value and gradients are those of `reference` on one device, and these are split as the arguments are.

    Returns:
        The program, compiled.
    """
    args, options = case.draw()
    plain = {k: v for k, v in options.items() if k not in ("block", "chunk")}
    f, values = on_floats(case.module.apply, args, options)
    reference, _ = on_floats(case.module.reference, args, plain)
    dy = normal_like(jax.eval_shape(reference, *values))

    want = jax.jit(_both(reference, AxisType.Auto))(values, dy)
    mesh = jax.make_mesh((4,), ("x",), axis_types=(kind,))
    to = jax.tree.map(lambda spec: NamedSharding(mesh, spec), split.specs)
    placed = jax.device_put(args, to)
    f, values = on_floats(case.module.apply, placed, options)
    with jax.set_mesh(mesh) if kind is AxisType.Explicit else contextlib.nullcontext():
        program = jax.jit(_both(f, kind)).lower(values, dy).compile()
        got = program(values, dy)
    close(got, want)
    if kind is AxisType.Explicit:
        for value, grad in zip(values, got[1], strict=True):
            assert grad.sharding.is_equivalent_to(value.sharding, grad.ndim), split.name
        expected = _letters._dims(inspect.signature(case.module.apply).return_annotation)
        if split.name in expected or (split.name == "n0" and any(d.startswith("*n") for d in expected)):
            assert not jax.tree.leaves(got[0])[0].sharding.is_fully_replicated, split.name
    return program


def _both(f: Any, kind: AxisType) -> Any:
    """(values, dy) -> what f gives, and its gradients; on Explicit axes dy is split as what f gives."""

    def run(values: Any, dy: Any) -> Any:
        y, pull = jax.vjp(f, *values)
        like = lambda c, v: jax.reshard(c, jax.typeof(v).sharding) if kind is AxisType.Explicit else c
        return y, pull(jax.tree.map(like, dy, y))

    return run


def sent(case: Case, split: Split) -> tuple[int, int]:
    """Bytes that a device sends, forward and backward: `apply` on Explicit axes, `reference` on Auto ones.

    Results and gradients of both lie in the same way, which the types of `apply` choose.
    """
    args, options = case.draw()
    plain = {k: v for k, v in options.items() if k not in ("block", "chunk")}
    reference, values = on_floats(case.module.reference, args, plain)
    cotangent = normal_like(jax.eval_shape(reference, *values))

    def program(f: Any, options: Any, kind: AxisType, results: Any = None) -> Any:
        mesh = jax.make_mesh((4,), ("x",), axis_types=(kind,))
        on_mesh = lambda tree: jax.tree.map(lambda spec: NamedSharding(mesh, spec), tree)
        f, values = on_floats(f, jax.device_put(args, on_mesh(split.specs)), options)

        dy, out = cotangent, None
        if results is not None:
            lie = on_mesh(jax.tree.map(lambda sharding: sharding.spec, results))
            dy, out = jax.device_put(cotangent, lie), (lie, tuple(v.sharding for v in values))
        with jax.set_mesh(mesh) if kind is AxisType.Explicit else contextlib.nullcontext():
            return jax.jit(_both(f, kind), out_shardings=out).lower(values, dy).compile()

    ours = program(case.module.apply, options, AxisType.Explicit)
    theirs = program(case.module.reference, plain, AxisType.Auto, ours.output_shardings[0])
    bytes_of = lambda compiled: sum(one.sent for one in fn.shard.collectives(compiled))
    return bytes_of(ours), bytes_of(theirs)


# Where a device sends more than 1.05 times what it sends for plain JAX: at most so many bytes. Of what is
# merged into rows an inner split axis is gathered (images by height, features of heads), a recurrence goes
# over all of its time, and safe numbers take more sums (batch_norm about the first element, cosine, l2_norm).
MORE = {
    "attention-e": 25_728, "attention-e_v": 14_016, "attention-h": 6_144, "attention-s": 28_288,
    "avg_pool-n1": 4_096, "batch_norm-fsdp": 1_344, "batch_norm-n0": 960, "batch_norm-n1": 12_288,
    "batch_norm-n2": 12_288, "conv-c_in": 124_288, "conv-fsdp": 720, "conv-n1": 206_896, "conv-n2": 277_552,
    "conv_transpose-n1": 118_704, "conv_transpose-n2": 170_928, "cosine-d": 480, "deltas-d": 960,
    "deltas-n0": 512, "grid_sample-n0": 68_352, "grid_sample-n1": 68_352, "grid_sample-n2": 52_992,
    "group_norm-n1": 1_344, "group_norm-n2": 12_480, "gru-3*m": 21_872, "gru-m": 28_616, "gru-t": 9_440,
    "instance_norm-n1": 2_496, "instance_norm-n2": 12_480, "l2_norm-n2": 1_152, "layer_norm-d": 2_304,
    "lfilter-t": 2_656, "linear-d_in0": 6_144, "linear-d_in2": 3_840, "linear-d_out0": 6_912,
    "linear-n2": 6_912, "linear_attention-e": 40_320, "linear_attention-f": 18_816,
    "linear_attention-t": 77_312, "linear_cross_entropy-d": 13_920, "linear_recurrence-...1": 20_672,
    "linear_recurrence-t": 26_048, "log_softmax-n1": 144, "logsumexp-n1": 768, "lstm-4*m": 16_512,
    "lstm-m": 26_400, "lstm-p": 24_864, "lstm-t": 6_944, "mel-bins": 3_840, "moe-d": 143_616,
    "moe-d_hidden": 6_912, "moe-fsdp": 7_308, "moe-routes": 7_308, "multihead-...1": 16_560,
    "multihead-...2": 53_280, "multihead-t": 33_600, "pad-n1": 21_760, "resize-n1": 19_968, "rnn-m": 6_144,
    "softmax-n1": 1_152,
}  # fmt: skip

ABORTS = "adaptive_max_pool-n1", "max_pool-n2"  # XLA ends the process when it compiles `reference`
