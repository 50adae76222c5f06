"""What one step of training a decoder costs on a mesh, by formula: FLOPs, bytes held and sent; seconds too.

Of n sequences of t positions, split over D and C devices, one device holds x = n/D · t/C · d numbers of the
residual stream; T devices split heads, hidden features and vocabulary, S the layers. A ring sends, of an
array of A bytes over g devices, A (g − 1)/g from each for an all-gather, a reduce-scatter or an all-to-all,
and twice that for an all-reduce.

    FLOPs     forward 2 n t (maps + head + attention), backward 2 n t (2 maps + 3 head + 2.5 attention): the
              logits of `linear_cross_entropy` and the probabilities of attention are computed again. With
              remat the blocks' forward pass once more.
    data      whole leaves: their gradients are reduced; split leaves (FSDP): gathered in the forward and in
              the backward pass, their gradients reduced and scattered. The same over positions.
    tensor    x is reduced twice a layer forward and twice backward, once for the table of tokens and once for
              the head; a few numbers a token for the loss.
    context   heads for positions and back, q, k, v and o, each way; where the heads do not divide, keys and
              values are gathered.
    experts   with a capacity, over the devices that split the sequences too, all-to-all of the places of all
              experts, there and back, each way; else the tokens are gathered and the sums scattered, or,
              where all devices have them, reduced (`moe`). FLOPs are those of the k experts of a token.
    stage     2 x (m + S − 1)/m, of m microbatches, and 4 x (S − 1)/S at the ends; (S − 1)/m of the time of
              the blocks is a bubble. Weights are gathered once.

Sources: Austin et al., "How to Scale Your Model", 2025, "Sharded Matrices and How to Multiply Them" and "How
to Parallelize a Transformer for Training"; Jacobs et al., "DeepSpeed Ulysses", arXiv 2309.14509; Huang et
al., "GPipe", arXiv 1811.06965. What it says is compared with compiled programs in tests/shard/test_cost.py.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from funcnet import spec
from funcnet._numbers import of_bytes
from funcnet.errors import DTypeError, ShapeError, ValueRangeError, describe, shorten
from funcnet.nets import transformer
from funcnet.ops import _check
from funcnet.ops.dense import _experts
from funcnet.shard import layout
from funcnet.shard.machines import MACHINES, Machine

__all__ = ["Cost", "Sent", "Times", "cost"]


class Sent(NamedTuple):
    """What one device sends in a step.

    Attributes:
        kind: of collective, as `collectives` calls them.
        axis: of the mesh.
        what: "weights", "gradients" or "activations".
        bytes: all together.
    """

    kind: str
    axis: str
    what: str
    bytes: float


@dataclasses.dataclass(frozen=True)
class Times:
    """Seconds of one step on a machine, and what they are made of.

    Attributes:
        products: at the efficiency that was assumed, the pipeline's bubble included.
        memory: of reading and writing weights, gradients, the optimizer's state and what is kept.
        beside: links, for weights and gradients: sent while products are computed.
        between: links, for activations: products wait for them.
        step: the longest of the first three, and `between`.
        mfu: FLOPs that the model needs, three times the forward pass, over what the chips could have done.
        bound: which of the parts is the longest, and of links over which axis of the mesh.
        fits: whether `Cost.held` is less than the memory of a chip.
    """

    products: float
    memory: float
    beside: float
    between: float
    step: float
    mfu: float
    bound: str
    fits: bool


@dataclasses.dataclass(frozen=True)
class Cost:
    """What `cost` found; as text, a table. Bytes are those of one device.

    Attributes:
        mesh: its axes and their sizes.
        flops: of a step, on all devices together.
        forward: of these, what one forward pass needs.
        params: in their own dtype.
        optimizer: the state of the optimizer.
        gradients: as params.
        weights: copies in the dtype of the computation, and what is gathered of other devices at a time.
        activations: what is kept for the backward pass, and the arrays of a block at work.
        sent: what one device sends.
        bubble: of a pipeline, idle time over working time.
        times: on a machine, if one was given.
    """

    mesh: tuple[tuple[str, int], ...]
    flops: float
    forward: float
    params: float
    optimizer: float
    gradients: float
    weights: float
    activations: float
    sent: tuple[Sent, ...]
    bubble: float
    times: Times | None = None

    @property
    def held(self) -> float:
        """All that a device holds at once."""
        return self.params + self.optimizer + self.gradients + self.weights + self.activations

    def by_kind(self) -> dict[str, float]:
        """Bytes sent, by the kind of collective."""
        kinds = dict.fromkeys(one.kind for one in self.sent)
        return {kind: sum(one.bytes for one in self.sent if one.kind == kind) for kind in kinds}

    def __str__(self) -> str:
        names = "params", "optimizer", "gradients", "weights", "activations"
        rows = [("FLOPs of a step", f"{self.flops:.3e}", "all devices")]
        rows += [(f"{name} held", of_bytes(getattr(self, name)), "") for name in names if getattr(self, name)]
        rows.append(("all held", of_bytes(self.held), ""))
        rows += [
            (f"{one.what} sent", of_bytes(one.bytes), f"{one.kind} over {one.axis}") for one in self.sent
        ]
        if self.bubble:
            rows.append(("bubble", f"{self.bubble:.3f}", "idle over working time"))
        if (t := self.times) is not None:
            rows += [(name, f"{getattr(t, name):.4f} s", "") for name in ("products", "memory")]
            rows += [("links beside", f"{t.beside:.4f} s", ""), ("links between", f"{t.between:.4f} s", "")]
            rows += [("step", f"{t.step:.4f} s", f"bound by {t.bound}"), ("MFU", f"{t.mfu:.3f}", "")]
            rows.append(("fits", "yes" if t.fits else "no", ""))
        head = " × ".join(f"{name} {n}" for name, n in self.mesh) or "one device"
        widths = [max(len(row[i]) for row in rows) for i in range(2)]
        lines = (f"{a:<{widths[0]}}  {b:>{widths[1]}}  {c}".rstrip() for a, b, c in rows)
        return "\n".join([head, *lines])


def cost(
    config: transformer.Config,
    mesh: Any,
    rules: layout.Rules,
    batch: tuple[int, int],
    *,
    machine: str | Machine | None = None,
    over: tuple[Any, Any] | None = None,
    microbatches: int = 1,
    moments: int = 2,
    efficiency: float = 0.6,
    whole_below: int = layout.WHOLE,
    on_cpu: bool = False,
) -> Cost:
    """What a step of training costs; nothing runs, and no device is needed.

    Of `transformer.hidden` and `linear_cross_entropy`, with layers in a loop. The batch's gradients are taken
    once; what an accumulation of parts sends more is not counted.

    Args:
        config: of a `transformer`.
        mesh: of `jax.make_mesh`, an `AbstractMesh`, or a dict of sizes, outermost axis first: the last one's
            neighbours are the nearest.
        rules: as in `of`; what "layers" lies on are the stages of a pipeline.
        batch: how many sequences, and how many positions of each.
        machine: a name in `MACHINES`, or a `Machine`, for seconds; None: none.
        over: the axes of the mesh that sequences and positions are split over, each a name, several or None;
            None: ("data", "context"), as far as the mesh has them; of a net with experts
            (("data", "experts"), "context").
        microbatches: of a pipeline.
        moments: copies of the params that the optimizer keeps: 2 of adamw.
        efficiency: of products, as a share of the machine's peak. An assumption.
        whole_below: as in `of`.
        on_cpu: as XLA compiles for a CPU, to compare with `collectives`: an all-reduce for a reduce-scatter,
            and in the backward pass one for each map that reads the stream; else their sum is reduced.

    Raises:
        DTypeError: config is of another net, or an argument is of another type.
        ValueRangeError: a name that the mesh or the table of machines lacks; an axis of the mesh that nothing
            is split over; a batch, layers or microbatches that do not divide; experts in stages.
    """
    where = "shard.cost"
    _check.config(where, config, transformer.Config)
    specs = _specs(config, str(jax.dtypes.canonicalize_dtype("float64")))
    mesh = _mesh(where, mesh)
    machine = None if machine is None else machine_of(where, machine)
    layout._check(where, specs, rules, mesh)
    split = _Split.of(where, config, specs, rules, mesh, batch, over, microbatches, whole_below)
    for name, value in (("moments", moments), ("whole_below", whole_below)):
        _check.positive(where, name, value, least=0)
    efficiency = _check.number(where, "efficiency", efficiency, strict=True)
    return _cost(config, split, machine, moments, efficiency, _check.flag(where, "on_cpu", on_cpu))


@functools.lru_cache(maxsize=8)
def _specs(config: transformer.Config, _: str) -> Any:
    """Traced once for many meshes; with x64 switched dtypes differ."""
    return transformer.specs(config)


class _Leaf(NamedTuple):
    """A leaf of params: which, its numbers on one device, bytes of one, and what its axes are split over.

    Of these `experts` split the experts, which no device gathers.
    """

    path: tuple[str, ...]
    numbers: int
    item: int
    over: frozenset[str]
    experts: tuple[str, ...]

    @property
    def in_block(self) -> bool:
        return self.path[0] == "blocks"


class _Split(NamedTuple):
    """A batch and a net on a mesh."""

    sizes: Mapping[str, int]
    n: int
    t: int
    sequences: tuple[str, ...]
    positions: tuple[str, ...]
    stage: tuple[str, ...]
    microbatches: int
    leaves: tuple[_Leaf, ...]

    @classmethod
    def of(
        cls,
        where: str,
        config: transformer.Config,
        specs: Any,
        rules: Any,
        mesh: Any,
        batch: Any,
        over: Any,
        microbatches: Any,
        whole_below: int,
    ) -> "_Split":
        n, t = batch_of(where, config, batch)
        sequences, positions = _over(where, config, mesh, over)
        stage = layout._tuple(rules.get("layers"))
        leaves = []
        for path, leaf in jax.tree.leaves_with_path(specs, is_leaf=spec.is_spec):
            split = layout._axes(leaf, rules, mesh, whole_below)
            axes = [name for axis in split for name in axis.over]
            named = zip(leaf.axes, split, strict=True)
            of_experts = tuple(name for axis, one in named if axis == "experts" for name in one.over)
            numbers = math.prod(leaf.shape) // math.prod(mesh.shape[name] for name in axes)
            names = tuple(entry.key for entry in path)
            leaves.append(_Leaf(names, numbers, np.dtype(leaf.dtype).itemsize, frozenset(axes), of_experts))
        self = cls(
            dict(mesh.shape), n, t, sequences, positions, stage,
            _check.positive(where, "microbatches", microbatches), tuple(leaves),
        )  # fmt: skip
        self._check(where, config)
        return self

    def size(self, axes: Any) -> int:
        return math.prod(self.sizes[axis] for axis in axes)

    @property
    def batch(self) -> tuple[str, ...]:
        """The axes of the mesh that the batch is split over, within the blocks."""
        return tuple(axis for axis in (*self.sequences, *self.positions) if axis not in self.stage)

    @property
    def tokens(self) -> float:
        """Of a device, within the blocks."""
        return self.n * self.t / self.size(self.batch)

    @property
    def ends(self) -> float:
        """Of a device, before and behind the blocks, where stages may split the batch too."""
        return self.n * self.t / self.size({*self.sequences, *self.positions})

    def holds(self, *path: str) -> frozenset[str]:
        """The axes of the mesh that a leaf is split over as a tensor: not as the batch is, nor by layers."""
        apart = {*self.sequences, *self.positions, *self.stage}
        return next((leaf.over - apart for leaf in self.leaves if leaf.path == path), frozenset())

    def _check(self, where: str, config: transformer.Config) -> None:
        parts = self.size(self.sequences)
        if config.experts is not None and self.size(self.stage) > 1:
            raise ValueRangeError(
                f"{where}: layers with experts are split over stages, where their sums are not counted.",
                path="rules",
                expected='rules without "layers", or config.experts: None',
                actual=f"config.experts = {config.experts}, stages over {', '.join(self.stage)}",
            )
        for what, whole, by in (
            ("the batch's sequences", self.n, parts),
            ("the batch's positions", self.t, self.size(self.positions)),
            ("config.layers", config.layers, self.size(self.stage)),
            ("the sequences of a device", self.n // parts, self.microbatches),
        ):
            if whole % by:
                raise ValueRangeError(
                    f"{where}: {by} does not divide {what}, {whole}.",
                    path="microbatches" if by == self.microbatches and "of a device" in what else "batch",
                    expected=f"a multiple of {by}",
                    actual=str(whole),
                )
        if self.size(self.stage) > 1 and self.size(self.positions) > 1:
            raise ValueRangeError(
                f"{where}: positions are split beside stages, where attention would gather all of them.",
                path="over",
                expected="positions, or layers, on several devices",
                actual=f"{', '.join(self.positions)} and {', '.join(self.stage)}",
            )
        used = {*self.sequences, *self.positions}.union(*(leaf.over for leaf in self.leaves))
        idle = [axis for axis, g in self.sizes.items() if g > 1 and axis not in used]
        if idle:
            raise ValueRangeError(
                f"{where}: nothing is split over {', '.join(map(repr, idle))}.",
                path="mesh",
                expected="every axis of the mesh in the rules, or in over",
                actual=f"the mesh: {', '.join(f'{axis} {n}' for axis, n in self.sizes.items())}",
                hint='rules for "layers" make stages, for "h" and "v" tensors; over splits the batch.',
            )


def _cost(
    config: transformer.Config,
    split: _Split,
    machine: Machine | None,
    moments: int,
    efficiency: float,
    on_cpu: bool,
) -> Cost:
    flops, forward, of_device = _flops(config, split)
    params = float(sum(leaf.numbers * leaf.item for leaf in split.leaves))
    weights, activations = _weights(config, split), _activations(config, split)
    sent = tuple(_merged(_collectives(config, split, on_cpu)))
    found = Cost(
        mesh=tuple(split.sizes.items()), flops=flops, forward=forward, params=params,
        optimizer=moments * params, gradients=params, weights=weights, activations=activations, sent=sent,
        bubble=_fill(split) - 1,
    )  # fmt: skip
    if machine is None:
        return found
    return dataclasses.replace(found, times=_times(found, of_device, machine, efficiency))


# ---- products ---------------------------------------------------------------------------------------------


def _flops(config: transformer.Config, split: _Split) -> tuple[float, float, float]:
    """Of a step, of a forward pass, and of a step on one device, bubbles as if they were work."""
    d, h, kv, e, f = _widths(config)
    tokens, ups = 2.0 * split.n * split.t, 2 if config.mlp == "swiglu" else 1
    block = "blocks", "attention"
    # multiply-adds of a token, and how many devices share them
    parts = {
        "q": (config.layers * 2 * d * h * e, split.holds(*block, "q", "w")),
        "k": (config.layers * 2 * d * kv * e, split.holds(*block, "k", "w")),
        "mlp": (config.layers * (ups + 1) * d * f, split.holds("blocks", "up", "w")),
        "router": (0, frozenset()),
        "attention": (config.layers * 2 * _keys(config, split.t) * h * e, split.holds(*block, "q", "w")),
        "head": (_head(config), split.holds("head" if "head" in _roots(split) else "tokens", "w")),
    }
    empty = dict[str, float]()
    if config.experts is not None:
        sent, k = _Rows.of(config, split), config.experts_per_token
        parts["mlp"] = k * parts["mlp"][0], frozenset(sent.rest)
        parts["router"] = config.layers * d * config.experts, frozenset()
        empty["mlp"] = sent.places / (split.tokens * k) if sent.by_place else 1.0
    forward = step = device = 0.0
    for name, (each, over) in parts.items():
        again = 1 if config.remat and name != "head" else 0
        times = 1 + {"head": 3.0 if config.head == "next" else 2.0, "attention": 2.5}.get(name, 2.0) + again
        forward += tokens * each
        step += tokens * each * times
        here = split.ends if name == "head" else split.tokens * _fill(split) / split.size(split.stage)
        device += 2.0 * here * each * times * empty.get(name, 1.0) / split.size(over)
    return step, forward, device


def _widths(config: transformer.Config) -> tuple[int, int, int, int, int]:
    """d, heads, heads of keys, width of a head, hidden features."""
    h = config.heads
    return (
        config.d,
        h,
        config.kv_heads or h,
        config.head_width or config.d // h,
        config.d_hidden or 4 * config.d,
    )


def _keys(config: transformer.Config, t: int) -> float:
    """How many keys a query sees, on average over positions and layers."""
    seen = lambda w: w * (w + 1) / 2 + (t - w) * w  # Σ min(i, w) for i = 1 ... t
    sizes = [min(window or t, t) for window in config.windows]
    layers = [sizes[i % len(sizes)] for i in range(config.layers)]
    return sum(map(seen, layers)) / len(layers) / t


def _head(config: transformer.Config) -> int:
    if config.head is None:
        return 0
    return config.d * (config.vocabulary if config.head == "next" else config.classes)


def _fill(split: _Split) -> float:
    """How often a stage runs, over how often it has something to do."""
    m, s = split.microbatches, split.size(split.stage)
    return (m + s - 1) / m


def _roots(split: _Split) -> set[str]:
    return {leaf.path[0] for leaf in split.leaves}


# ---- what is held -----------------------------------------------------------------------------------------


def _act(config: transformer.Config, split: _Split) -> int:
    """Bytes of a number of the computation."""
    return split.leaves[0].item if config.dtype is None else np.dtype(jax.numpy.dtype(config.dtype)).itemsize


def _weights(config: transformer.Config, split: _Split) -> float:
    """Copies in another dtype; of what is split as the batch is, what is gathered: a layer, and the rest."""
    act, total = _act(config, split), 0.0
    in_stage = config.layers // split.size(split.stage)
    for leaf in split.leaves:
        if leaf.item != act:
            total += leaf.numbers * act
        if (g := split.size(leaf.over & {*split.batch} - {*leaf.experts})) > 1 and leaf.path[0] != "tokens":
            kept = split.stage or ("moe" in leaf.path and not config.remat)  # gathered once
            at_once = in_stage if kept or not leaf.in_block else 1
            size = leaf.numbers * g * act
            total += size * (at_once / in_stage if leaf.in_block else 1)
            if "moe" in leaf.path:  # its gradient, before it is scattered
                total += size / in_stage
    return total


def _activations(config: transformer.Config, split: _Split) -> float:
    """What the loop over layers keeps, two layers' worth at work, and the loss."""
    d, h, kv, e, f = _widths(config)
    act, tokens = _act(config, split), split.tokens
    block = "blocks", "attention"
    of_q, of_k = (split.size(split.holds(*block, name, "w")) for name in "qk")
    hidden = (3 if config.mlp == "swiglu" else 2) * f / split.size(split.holds("blocks", "up", "w"))
    # x and what its norm gives, twice; q, o, k, v; the hidden layer before and behind its gate
    layer = tokens * act * (4 * d + 2 * h * e / of_q + 2 * kv * e / of_k + hidden)
    at_work = 0.0
    if config.experts is not None:  # what enters their activations, and the rows that came
        sent, maps = _Rows.of(config, split), 2 if config.mlp == "swiglu" else 1
        layer += act * (sent.held * maps * f / split.size(sent.inner) + sent.rows * d - tokens * hidden)
        at_work = 2 * act * sent.held * d  # rows that go in, and that come out
    kept = tokens * act * d if config.remat else layer
    stream, m = tokens * act * d, split.microbatches
    loops = config.layers / split.size(split.stage) * _fill(split)
    return kept * loops + 2 * layer / m + at_work + 3 * stream + _logits(config, split)


def _logits(config: transformer.Config, split: _Split) -> float:
    """Of a chunk of the vocabulary: logits, probabilities and their cotangent, at least in float32."""
    if config.head != "next":
        return 0.0
    parts = split.size(split.holds("head" if "head" in _roots(split) else "tokens", "w"))
    columns = min(config.vocabulary / parts, max(2**21 / (split.n * split.t), 1024))
    return 3 * split.ends * columns * max(_act(config, split), 4)


# ---- what is sent -----------------------------------------------------------------------------------------


def _collectives(config: transformer.Config, split: _Split, on_cpu: bool) -> Iterator[Sent]:
    yield from _of_leaves(config, split, on_cpu)
    yield from _of_tensors(config, split, on_cpu)
    yield from _of_positions(config, split)
    if config.experts is not None:
        yield from _of_experts(config, split)
    if split.stage:
        yield from _of_stages(config, split)
    for axes in filter(None, (split.sequences, split.positions)):  # the loss
        size = 2 * _ring(max(_act(config, split), 4), split.size(axes))
        yield Sent("all-reduce", axes[0], "gradients", size)


def _of_leaves(config: transformer.Config, split: _Split, on_cpu: bool) -> Iterator[Sent]:
    """Weights gathered, gradients reduced, over the axes of the batch one after the other."""
    act = _act(config, split)
    for leaf in split.leaves:
        batch = split.batch if leaf.in_block else (*split.sequences, *split.positions)
        batch = [axis for axis in batch if axis not in leaf.experts]
        numbers, gathered = leaf.numbers, [axis for axis in batch if axis in leaf.over]
        # In a loop, once a pass; else once, and kept. The table's rows are looked up where its features lie.
        looked_up = leaf.path[0] == "tokens"
        times = 2 if leaf.in_block and not split.stage else 1
        if "moe" in leaf.path and not config.remat:
            times = 1
        if looked_up and not (config.tied and config.head == "next"):
            times = 0
        for axis in gathered if times else ():
            g = split.sizes[axis]
            numbers *= g
            yield Sent("all-gather", axis, "weights", times * _ring(numbers * act, g))
            by_hand = leaf.in_block and bool(split.stage)  # a pipeline writes its collectives out
            kind, twice = ("all-reduce", 2) if on_cpu and not by_hand else ("reduce-scatter", 1)
            yield Sent(kind, axis, "gradients", twice * _ring(numbers * act, g))
        if looked_up:
            yield from _of_rows(config, split, gathered)
        for axes in (split.sequences, split.positions):
            if axes := [axis for axis in axes if axis in batch and axis not in leaf.over]:
                size = 2 * _ring(leaf.numbers * act, split.size(axes))
                yield Sent("all-reduce", axes[0], "gradients", size)


def _of_rows(config: transformer.Config, split: _Split, gathered: list[str]) -> Iterator[Sent]:
    """A table whose features are split as the batch is: every device looks all ids up, features go home."""
    for axis in gathered:
        g = split.sizes[axis]
        yield Sent("all-gather", axis, "activations", 2 * _ring(split.ends * g * 4, g))
        yield Sent(
            "all-to-all", axis, "activations", 2 * _ring(split.ends * config.d * _act(config, split), g)
        )


def _of_tensors(config: transformer.Config, split: _Split, on_cpu: bool) -> Iterator[Sent]:
    """Sums over devices that split heads, hidden features or the vocabulary."""
    d, _, kv, e, _ = _widths(config)
    act = _act(config, split)
    stream, layers = split.tokens * d * act, config.layers / split.size(split.stage) * _fill(split)
    block = "blocks", "attention"
    of_q, of_k = (split.holds(*block, name, "w") for name in "qk")
    for axis in of_q:
        again = 1 if config.remat else 0
        maps = 1 + (2 if axis in of_k else 0) if on_cpu else 1
        sums = layers * (1 + again + maps) * stream
        if axis not in of_k:  # heads of keys that are whole have a gradient from each part of the queries
            sums += layers * 2 * split.tokens * kv * e * act
        yield Sent("all-reduce", axis, "activations", 2 * _ring(sums, split.sizes[axis]))
    for axis in split.holds("blocks", "up", "w"):
        maps = 2 if on_cpu and config.mlp == "swiglu" else 1
        yield Sent(
            "all-reduce", axis, "activations", 2 * _ring(layers * (1 + maps) * stream, split.sizes[axis])
        )
    stream = split.ends * d * act
    for axis in split.holds("tokens", "w"):
        yield Sent("all-reduce", axis, "activations", 2 * _ring(stream, split.sizes[axis]))
    if config.head == "next":
        for axis in split.holds("tokens" if config.tied else "head", "w"):
            numbers = stream + 5 * split.ends * max(act, 4)  # its gradient; of the loss a few numbers a token
            yield Sent("all-reduce", axis, "activations", 2 * _ring(numbers, split.sizes[axis]))


class _Rows(NamedTuple):
    """The rows of one layer with experts on a device, as `moe` sends them.

    Attributes:
        over: the axes of the mesh that the experts are split over; of these the batch is split over `shared`.
        shared: those.
        inner: the axes that their hidden features are split over.
        by_place: whether each expert has its places for the tokens of each sequence.
        places: how many, of all experts.
        rows: tokens that are gathered, or places that came, of which there is a copy.
        held: rows for which there is room, so that every choice of the router finds its own.
    """

    over: tuple[str, ...]
    shared: tuple[str, ...]
    inner: tuple[str, ...]
    by_place: bool
    places: float
    rows: float
    held: float

    @classmethod
    def of(cls, config: transformer.Config, split: _Split) -> "_Rows":
        up = next(leaf for leaf in split.leaves if leaf.path == ("blocks", "moe", "up", "w"))
        experts, k = config.experts or 1, config.experts_per_token
        shared = tuple(axis for axis in up.experts if axis in split.batch)
        inner = tuple(sorted(split.holds("blocks", "moe", "up", "w") - {*up.experts}))
        whole, capacity = split.size(split.positions) == 1, config.capacity
        if capacity is not None and whole and up.experts and {*up.experts} <= {*split.sequences}:
            places = split.tokens / split.t * experts * _experts.room(capacity, k, split.t, experts)
            return cls(up.experts, shared, inner, True, places, places, places)
        ours = experts // split.size(up.experts)
        rows = split.tokens * split.size(shared)
        held = rows * min(k, ours) + ours * min(_experts.TILE, rows)
        return cls(up.experts, shared, inner, False, 0.0, rows if shared else 0.0, held)

    @property
    def rest(self) -> tuple[str, ...]:
        """The axes over which every device has the same tokens, and its own part of what is added up."""
        return tuple(axis for axis in (*self.over, *self.inner) if axis not in self.shared)


def _of_experts(config: transformer.Config, split: _Split) -> Iterator[Sent]:
    """Rows to their experts and back: the formulas of `moe`, and of the backward pass as much again."""
    sent, k, again = _Rows.of(config, split), config.experts_per_token, 1 if config.remat else 0
    act, gate = _act(config, split), max(_act(config, split), 4)  # the router computes in float32 or wider
    x = config.d * act
    every: Any = functools.partial(Sent, axis=(sent.shared or sent.rest or ("",))[0], what="activations")
    g, layers = split.size(sent.shared), config.layers
    rows, each = split.tokens, k * gate
    if sent.by_place:
        rows, each = sent.places, gate
        size = rows * ((4 + again) * x + (2 + again) * gate)
        yield every("all-to-all", bytes=layers * _ring(size, g))
    elif sent.shared:
        rows *= g
        to = (2 + again) * x + (1 + again) * k * (gate + 4)  # 4 of a choice
        yield every("all-gather", bytes=layers * _ring(rows * to, g))
        yield every("reduce-scatter", bytes=layers * _ring(rows * (2 * x + k * gate), g))
    if sent.rest:
        one = Sent("all-reduce", sent.rest[0], "activations", 0.0)
        size = split.tokens * x + rows * (x + each)
        yield one._replace(bytes=layers * 2 * _ring(size, split.size(sent.rest)))


def _of_positions(config: transformer.Config, split: _Split) -> Iterator[Sent]:
    """Attention over positions that lie apart, as `attention` does it."""
    _, h, kv, e, _ = _widths(config)
    layers = config.layers / split.size(split.stage) * _fill(split)
    of_q, of_k = (split.size(split.holds("blocks", "attention", name, "w")) for name in "qk")
    again, c = 1 if config.remat else 0, split.size(split.positions)
    by_heads = h % (c * of_q) == 0 and kv % (c * of_k) == 0
    for axis in split.positions:
        g = split.sizes[axis]
        if by_heads:
            size = split.tokens * e * _act(config, split) * (2 * h / of_q + 2 * kv / of_k)
            yield Sent("all-to-all", axis, "activations", layers * (2 + again) * _ring(size, g))
        else:
            size = split.tokens * g * 2 * kv / of_k * e * _act(config, split)
            yield Sent("all-gather", axis, "activations", layers * (1 + again) * _ring(size, g))
            yield Sent("reduce-scatter", axis, "activations", layers * _ring(size, g))


def _of_stages(config: transformer.Config, split: _Split) -> Iterator[Sent]:
    """Each microbatch goes from stage to stage, its gradient back; and what happens at a pipeline's ends."""
    (axis,), s = split.stage, split.size(split.stage)
    stream = split.tokens * config.d * _act(config, split)
    yield Sent("collective-permute", axis, "activations", 2 * stream * _fill(split) * (s > 1))
    if axis in split.sequences:  # x is gathered, the result scattered; and back
        for kind in ("all-gather", "reduce-scatter"):
            yield Sent(kind, axis, "activations", 2 * _ring(stream, s))
    else:  # all take the result of the last stage, and have the gradient of the first
        yield Sent("all-reduce", axis, "activations", 4 * _ring(stream, s))


def _ring(size: Any, g: int) -> float:
    return size * (g - 1) / g


def _merged(sent: Iterator[Sent]) -> Iterator[Sent]:
    """Those of one kind, axis and purpose together; none that are empty."""
    total = dict[tuple[str, str, str], float]()
    for one in sent:
        total[one[:3]] = total.get(one[:3], 0.0) + one.bytes
    return (Sent(*key, size) for key, size in total.items() if size)


# ---- seconds ----------------------------------------------------------------------------------------------


def _times(found: Cost, flops: float, machine: Machine, efficiency: float) -> Times:
    products = flops / (machine.flops * efficiency)
    state = found.params + found.optimizer
    # Weights are read in both passes and for their gradients, which are written and read, as what is kept is;
    # the optimizer reads and writes params and its state.
    traffic = 3 * (found.weights or found.params) + 2 * (found.gradients + found.activations + state)
    links = {"beside": dict[str, float](), "between": dict[str, float]()}
    for one in found.sent:
        place = links["between" if one.what == "activations" else "beside"]
        place[one.axis] = place.get(one.axis, 0.0) + _seconds(one, found.mesh, machine)
    beside, between = (float(sum(place.values())) for place in links.values())
    parts = {"products": products, "memory": traffic / machine.bandwidth}
    for kind, place in links.items():
        what = "activations" if kind == "between" else "weights and gradients"
        parts |= {f"{what} over {axis}": seconds for axis, seconds in place.items()}
    step = max(products, parts["memory"], beside) + between
    could = math.prod(n for _, n in found.mesh) * machine.flops
    return Times(
        products=products, memory=parts["memory"], beside=beside, between=between, step=step,
        mfu=3 * found.forward / could / step, bound=max(parts, key=parts.__getitem__),
        fits=found.held < machine.memory,
    )  # fmt: skip


def _seconds(one: Sent, mesh: tuple[tuple[str, int], ...], machine: Machine) -> float:
    """Of an axis with g devices k are joined by fast links; what crosses over to others is sent far.

    A ring over g = k m devices is one over k, and one over m of a k-th part: of its bytes (m − 1)/(g − 1) go
    far. Of an all-to-all (g − k)/(g − 1) do, and a permutation waits for its slowest pair.
    """
    names = [name for name, _ in mesh]
    at = names.index(one.axis)
    inner, g = math.prod(n for _, n in mesh[at + 1 :]), mesh[at][1]
    room = max(machine.joined // inner, 1)
    k = max(n for n in range(1, min(room, g) + 1) if g % n == 0)
    far = (g // k - 1) / (g - 1)
    if one.kind == "all-to-all":
        far = (g - k) / (g - 1)
    elif one.kind == "collective-permute":
        far = float(k < g)
    return one.bytes * ((1 - far) / machine.near + far / machine.far)


# ---- arguments --------------------------------------------------------------------------------------------


def _mesh(where: str, mesh: Any) -> Any:
    if not isinstance(mesh, Mapping):
        if not isinstance(getattr(mesh, "shape", None), Mapping):
            raise DTypeError(
                f"{where}: mesh is no mesh.",
                path="mesh",
                expected='mesh: of jax.make_mesh, an AbstractMesh, or sizes, {"data": 512, "tensor": 8}',
                actual=f"mesh: {describe(mesh)}",
            )
        return layout.mesh_of(where, mesh)
    sizes = {name: _check.positive(where, f"mesh[{name!r}]", size) for name, size in mesh.items()}
    if not all(isinstance(name, str) for name in sizes):
        raise DTypeError(
            f"{where}: an axis of the mesh has no name.",
            path="mesh",
            expected="mesh: names and sizes",
            actual=f"mesh: names {', '.join(map(shorten, sizes))}",
        )
    return jax.sharding.AbstractMesh(tuple(sizes.values()), tuple(sizes))


def machine_of(where: str, machine: Any) -> Machine:
    """A machine, or that of a name."""
    if isinstance(machine, Machine):
        return machine
    _check.one_of(where, "machine", machine, tuple(MACHINES))
    return MACHINES[machine]


def batch_of(where: str, config: transformer.Config, batch: Any) -> tuple[int, int]:
    """Sequences and positions."""
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        raise DTypeError(
            f"{where}: batch is not two numbers.",
            path="batch",
            expected="batch: how many sequences, and how many positions of each",
            actual=f"batch: {describe(batch)}",
        )
    n, t = (_check.positive(where, f"batch[{i}]", size) for i, size in enumerate(batch))
    if t > config.context:
        raise ShapeError(
            f"{where}: batch has {t} positions, but the context is {config.context}.",
            path="batch",
            expected=f"batch[1] ≤ {config.context}     (config.context)",
            actual=f"batch = {(n, t)}",
        )
    return n, t


def _over(
    where: str, config: transformer.Config, mesh: Any, over: Any
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    if over is None:
        names = ("data", "experts") if config.experts is not None else ("data",)
        found = lambda *names: tuple(name for name in names if name in mesh.shape)
        return found(*names), found("context")
    if not isinstance(over, tuple | list) or len(over) != 2:
        raise DTypeError(
            f"{where}: over is not two entries.",
            path="over",
            expected='over: axes of the mesh for sequences and for positions, ("data", None)',
            actual=f"over: {describe(over)}",
        )
    sequences, positions = map(layout._tuple, over)
    for axis in (*sequences, *positions):
        layout.check_axis(where, "over", axis, mesh)
    return sequences, positions
