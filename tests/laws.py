"""The laws of the contract (docs/contract.md), each a function of an operation, its arguments and options.

A law raises AssertionError where it is broken. The truth is always `reference`, itself held by a naive loop
in NumPy and by finite differences; never the function that a rule is attached to.

Most of a law's time is compiling, and what is called eagerly compiles a program for each of its primitives:
so each side of a comparison is one program, and what a law prepares is NumPy. `forward` calls eagerly.
"""

import collections
import collections.abc
import contextlib
import functools
import math
import types
import warnings
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from jax.experimental import jet
from jax.sharding import AxisType, PartitionSpec

import funcnet as fn
from tests.cases import Case

EXACT = 1e-10  # float64, relative to the largest element of the leaf
NOISE = 1e-12  # what cancellation leaves of a gradient that is zero
# A truth in float64 need not be fast: to compile it is most of what it costs.
PLAINLY = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
if jax.__version_info__ < (0, 11):  # later ones must
    PLAINLY["xla_cpu_use_fusion_emitters"] = False
SOUND = ("istft", "lfilter", "stft")  # a window or coefficients after x
X_FIRST = ("matmul", *SOUND)
RECURRENT = ("gru", "lstm", "rnn")  # [*n, t, d], with a state that may be absent


def close(got: Any, want: Any, tolerance: float = EXACT, noise: float = NOISE) -> None:
    """Equal leaf by leaf, each measured against its own size."""
    got, want = jax.tree.leaves_with_path(got), jax.tree.leaves_with_path(want)
    assert [p for p, _ in got] == [p for p, _ in want]
    for (path, g), (_, w) in zip(got, want, strict=True):
        g, w = np.asarray(g, np.float64), np.asarray(w, np.float64)
        assert g.shape == w.shape, f"{jax.tree_util.keystr(path)}: shape {g.shape}, not {w.shape}"
        if w.size:
            assert np.isfinite(w).all(), f"{jax.tree_util.keystr(path)}: the truth is not finite"
            error, scale = np.abs(g - w).max(), np.abs(w).max()
            assert error <= tolerance * scale + noise, (
                f"{jax.tree_util.keystr(path)}: error {error:.1e} at scale {scale:.1e}"
            )


def is_float(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.floating)


def floats(args: Any) -> tuple[list[Any], Any]:
    """The float leaves of args, and the function that puts others in their place."""
    leaves, tree = jax.tree.flatten(args)
    moving = [i for i, leaf in enumerate(leaves) if is_float(leaf)]

    def rebuild(values: list[Any]) -> Any:
        replaced = dict(zip(moving, values, strict=True))
        return jax.tree.unflatten(tree, [replaced.get(i, leaf) for i, leaf in enumerate(leaves)])

    return [leaves[i] for i in moving], rebuild


def on_floats(f: Any, args: Any, options: Any) -> tuple[Any, list[Any]]:
    """f as a function of the float leaves of its arguments, and those leaves."""
    values, rebuild = floats(args)
    return lambda *v: f(*rebuild(list(v)), **options), values


def normal_like(tree: Any, seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda v: jnp.asarray(rng.standard_normal(v.shape), v.dtype), tree)


def pulled(f: Any) -> Any:
    """(values, dy) -> the cotangents of f's arguments, compiled."""
    return jax.jit(lambda values, dy: list(jax.vjp(f, *values)[1](dy)))


def loss_of(f: Any) -> Any:
    """A scalar with a curved, uneven dependence on every output."""

    return lambda *values: uneven(f(*values))


def uneven(y: Any) -> Any:
    return sum(
        jnp.sum(jnp.sin(v + jnp.arange(v.size, dtype=v.dtype).reshape(v.shape))) for v in jax.tree.leaves(y)
    )


def cotangents(y: Any) -> list[Any]:
    ones = jax.tree.map(lambda v: jnp.asarray(np.ones(v.shape), v.dtype), y)
    return [normal_like(y, 1), normal_like(y, 2), ones]


def with_zeros(grads: Any, args: Any) -> list[Any]:
    """The cotangents of the float leaves, None (state) read as zeros."""
    out: list[Any] = []

    def visit(grad: Any, arg: Any) -> None:
        for leaf in jax.tree.leaves(arg):
            if is_float(leaf):
                out.append(jnp.zeros_like(leaf) if grad is None else grad)
            else:
                assert grad is None, "a cotangent for an integer, boolean or key"

    args = (*args, *[None] * (len(grads) - len(args)))  # those that are None unless given
    jax.tree.map(visit, grads, args, is_leaf=lambda v: v is None)
    return out


# ---- the definition ---------------------------------------------------------------------------------------


def naive(case: Case, op: Any, args: Any, options: Any) -> None:
    """reference = the loop in tests/naive, and what comes out is an array of the right dtype."""
    loop = naive_loop(case.op)
    plain = lambda v: v if jnp.issubdtype(v.dtype, jax.dtypes.prng_key) else np.asarray(v)
    f, values = on_floats(op.reference, args, options)
    close(
        jax.jit(f)(*values),
        loop(
            *jax.tree.map(plain, args),
            **jax.tree.map(lambda v: plain(v) if hasattr(v, "dtype") else v, options),
        ),
    )


def naive_loop(name: str) -> Any:
    """The loop of an operation: of its own file, or of that of its family."""
    file = fn._FILES.get(name, name).rpartition(".")[2]
    return getattr(__import__(f"tests.naive.{file}", fromlist=["_"]), name)


def finite_differences(case: Case, op: Any, args: Any, options: Any) -> None:
    """⟨dy, J t⟩ by jax.vjp(reference) = the central difference along t."""
    f, values = on_floats(op.reference, args, options)
    f, pull = jax.jit(f), pulled(f)
    dy, t, h = normal_like(jax.eval_shape(f, *values), 3), normal_like(values, 4), 1e-6
    if case.op == "batch_norm":  # the state is an argument without gradient, not a constant
        t = [u * float(np.any(g)) for u, g in zip(t, pull(values, dy), strict=True)]
        dy = (dy[0], jax.tree.map(jnp.zeros_like, dy[1]))
    if (row := options.get("padding_index")) is not None:  # so is the row of padding
        t = [np.where(np.arange(len(u))[:, None] == row, 0, u) for u in t]
    dot = lambda a, b: sum(
        float(np.vdot(u, v)) for u, v in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )
    moved = lambda h: f(*(np.asarray(v) + h * np.asarray(u) for v, u in zip(values, t, strict=True)))
    difference = lambda a, b: (np.asarray(a) - np.asarray(b)) / (2 * h)
    want = dot(dy, jax.tree.map(difference, moved(h), moved(-h)))
    got = dot(pull(values, dy), t)
    scale = math.sqrt(dot(dy, dy) * dot(t, t)) + 1.0
    assert abs(got - want) < 1e-7 * scale, f"jax.vjp(reference) says {got}, differences say {want}"


# ---- the fast form and its gradient -----------------------------------------------------------------------


def forward(case: Case, op: Any, args: Any, options: Any) -> None:
    """apply = reference, eagerly, where no NaN may come up, and jitted; the first output of vjp too."""
    f, values = on_floats(op.reference, args, options)
    g, _ = on_floats(op.apply, args, options)
    want = jax.jit(f)(*values)
    with jax.debug_nans(True):
        y, (of_vjp, _) = op.apply(*args, **options), op.vjp(*args, **options)
    close((y, of_vjp, jax.jit(g)(*values)), (want,) * 3)
    assert jax.tree.map(lambda v: v.dtype, want) == jax.tree.map(lambda v: v.dtype, y)


def formula(case: Case, op: Any, args: Any, options: Any) -> None:
    """vjp = jax.vjp(reference) on every leaf, for random and constant cotangents."""
    f, values = on_floats(op.reference, args, options)
    pull = pulled(f)
    moving, rebuild = floats(args)
    by_hand = jax.jit(lambda v, dy: op.vjp(*rebuild(v), **options)[1](dy))
    for dy in cotangents(jax.eval_shape(f, *values)):
        grads = by_hand(moving, dy)
        close(with_zeros(grads, args), pull(values, dy))
        assert isinstance(grads, tuple)
        assert [g.dtype for g in with_zeros(grads, args)] == [v.dtype for v in values]


def attached(case: Case, op: Any, args: Any, options: Any) -> None:
    """jax.vjp(apply) = jax.vjp(reference), with our rule and with JAX's."""
    f, values = on_floats(op.reference, args, options)
    g, _ = on_floats(op.apply, args, options)
    dy = normal_like(jax.eval_shape(f, *values), 5)

    @jax.jit
    def both(values: Any, dy: Any) -> Any:
        ours = jax.vjp(g, *values)[1](dy)
        with fn.autodiff("jax"):
            return list(ours), list(jax.vjp(g, *values)[1](dy))

    close(both(values, dy), (pulled(f)(values, dy),) * 2)


def no_retrace(case: Case, op: Any, args: Any, options: Any) -> None:
    """Equal calls give pullbacks of equal structure, so that what consumes them is traced once."""
    traces = []

    @jax.jit
    def consume(pullback: Any, dy: Any) -> Any:
        traces.append(1)
        return jax.tree.leaves(pullback(dy))

    for _ in range(2):
        y, pullback = jax.eval_shape(lambda: op.vjp(*args, **options))
        jax.eval_shape(consume, pullback, y)
    assert len(traces) == 1, "the pullback has a new structure on each call"


def family(case: Case, op: Any, args: Any, options: Any) -> None:
    """Of the members of a family, in two programs: naive, and values and gradients in all their ways."""
    f, values = on_floats(op.reference, args, options)
    g, _ = on_floats(op.apply, args, options)
    _, rebuild = floats(args)
    for name, arrays in args[0].items():
        want = naive_loop(name)(*jax.tree.map(np.asarray, arrays), **op.members[name])
        close(getattr(fn, name).reference(*arrays, **op.members[name]), want)

    def all_of(values: Any, dy: Any) -> Any:
        y, pull = jax.vjp(g, *values)
        y_, pullback = op.vjp(*rebuild(values), **options)
        with fn.autodiff("jax"):
            return (y, pull(dy)), (y_, tuple(jax.tree.leaves(pullback(dy)))), (y, jax.vjp(g, *values)[1](dy))

    def truth(values: Any, dy: Any) -> Any:
        y, pull = jax.vjp(f, *values)
        return y, pull(dy)

    for dy in cotangents(jax.eval_shape(f, *values))[1:]:
        want = jax.jit(truth)(values, dy)
        close(jax.jit(all_of)(values, dy), (want,) * 3)


# ---- JAX's transforms -------------------------------------------------------------------------------------


def forward_mode(case: Case, op: Any, args: Any, options: Any) -> None:
    """jvp and linearize."""
    f, values = on_floats(op.reference, args, options)
    g, _ = on_floats(op.apply, args, options)
    t = normal_like(values, 6)
    want = jax.jit(lambda v, t: jax.jvp(f, v, t))(values, t)

    def both(v: Any, t: Any) -> Any:
        y, lin = jax.linearize(g, *v)
        return jax.jvp(g, v, t), (y, lin(*t))

    close(jax.jit(both)(values, t), (want, want))


def second_order(case: Case, op: Any, args: Any, options: Any) -> None:
    """Forward over reverse (a product with the Hessian), and reverse over reverse."""
    f, values = on_floats(op.reference, args, options)
    g, _ = on_floats(op.apply, args, options)
    t, every = normal_like(values, 7), tuple(range(len(values)))

    def both(h: Any) -> Any:
        grad = lambda *v: jax.grad(loss_of(h), every)(*v)
        squared = lambda *v: sum(jnp.sum(u**2) for u in grad(*v))
        return jax.jit(lambda v, t: (jax.jvp(grad, v, t)[1], jax.grad(squared, every)(*v)))

    if every:
        close(both(g)(values, t), both(f)(values, t), 1e-9, 1e-9)


def jacobians(case: Case, op: Any, args: Any, options: Any) -> None:
    """jacfwd = jacrev = those of reference; the Hessian too, where it is small."""
    f, values = on_floats(op.reference, args, options)
    g, _ = on_floats(op.apply, args, options)
    every, size = tuple(range(len(values))), sum(v.size for v in values)
    if not values or size > 150:
        return

    def all_of(h: Any, forward: Any) -> Any:
        hessian = jax.hessian(loss_of(h), every) if size <= 40 else lambda *_: ()
        return jax.jit(lambda *v: (forward(h, every)(*v), jax.jacrev(h, every)(*v), hessian(*v)))

    close(all_of(g, jax.jacfwd)(*values), all_of(f, jax.jacrev)(*values), 1e-9, 1e-10)


def batching(case: Case, op: Any, args: Any, options: Any) -> None:
    """vmap over every argument alone and over all at once = a loop, values and gradients."""
    f, values = on_floats(op.reference, args, options)
    g, _ = on_floats(op.apply, args, options)
    every = tuple(range(len(values)))
    if not values:
        return
    many = [np.stack([v, v * v + 0.1]) for v in map(np.asarray, values)]  # a variance stays positive

    def both(h: Any) -> Any:
        def loss(*v: Any) -> Any:
            y = h(*v)
            return uneven(y), y

        return jax.grad(loss, every, has_aux=True)

    one = jax.jit(both(f))
    for axes in {tuple(0 if j == i else None for j in every) for i in every} | {(0,) * len(every)}:
        mixed = [m if a == 0 else v for m, v, a in zip(many, values, axes, strict=True)]
        got = jax.jit(jax.vmap(both(g), in_axes=axes))(*mixed)
        rows = [one(*(m[i] if a == 0 else m for m, a in zip(mixed, axes, strict=True))) for i in range(2)]
        close(got, jax.tree.map(lambda *r: np.stack(r), *rows), 1e-9, 1e-10)


def control_flow(case: Case, op: Any, args: Any, options: Any) -> None:
    """Gradients through the body of a scan, plain and checkpointed with funcnet's policy."""
    f, values = on_floats(op.reference, args, options)
    g, _ = on_floats(op.apply, args, options)
    every = tuple(range(len(values)))
    if not values:
        return

    def scanned(loss: Any) -> Any:
        def total(*v: Any) -> Any:
            body = lambda total, scale: (total + loss(*(u * scale for u in v)), None)
            return jax.lax.scan(body, jnp.zeros((), v[0].dtype), jnp.asarray([0.5, 1.0], v[0].dtype))[0]

        return jax.grad(total, every)

    kept = jax.checkpoint(loss_of(g), policy=fn.rules.products_saveable)
    want = jax.jit(scanned(lambda *v: 3 * loss_of(f)(*v)))(*values)
    close(jax.jit(scanned(lambda *v: loss_of(g)(*v) + 2 * kept(*v)))(*values), want)


def sharding(case: Case, op: Any, args: Any, options: Any) -> None:
    """Under shard_map, the last float argument split over four devices, the others replicated."""
    f, values = on_floats(op.reference, args, options)
    g, _ = on_floats(op.apply, args, options)
    if not values:
        return
    every, P = tuple(range(len(values))), PartitionSpec
    mesh = jax.make_mesh((4,), ("d",), axis_types=(AxisType.Auto,))
    split = np.stack([np.asarray(values[-1]) * s for s in (1.0, 0.5, -1.0, 2.0)])
    specs = (*(P() for _ in values[:-1]), P("d"))

    def grads(*v: Any) -> Any:
        return jax.grad(lambda *v: loss_of(g)(*v[:-1], v[-1][0]), every)(*v)

    got = jax.jit(jax.shard_map(grads, mesh=mesh, in_specs=specs, out_specs=specs))(*values[:-1], split)
    total = lambda *v: jax.vmap(lambda row: loss_of(f)(*v[:-1], row))(v[-1]).sum()
    close(got, jax.jit(jax.grad(total, every))(*values[:-1], split))


def export(case: Case, op: Any, args: Any, options: Any) -> None:
    """One traced program, forward and gradient, lowers for cpu, cuda and tpu."""
    g, values = on_floats(op.apply, args, options)
    f = (lambda *v: (g(*v), jax.grad(loss_of(g), tuple(range(len(v))))(*v))) if values else (lambda: g())
    assert jax.export.export(jax.jit(f), platforms=["cpu", "cuda", "tpu"])(*values).platforms == (
        "cpu",
        "cuda",
        "tpu",
    )


# ---- wherever plain JAX runs: traced rather than compiled, where that shows it ----------------------------


@contextlib.contextmanager
def unchecked() -> Iterator[None]:
    """Annotations are not checked: a NumPy number is no int, and a symbol neither."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def program(op: Any, options: Any) -> tuple[Any, Any]:
    """A function of the arguments and of the options that are arrays, and these: gradients in both ways."""
    traced, static = fn.rules.split(options)

    def run(args: Any, traced: Any) -> Any:
        g, values = on_floats(op.apply, args, static | traced)
        y, pull = jax.vjp(g, *values)
        y_, pullback = op.vjp(*args, **static, **traced)
        return y, pull(y), y_, pullback(y_)

    return run, traced


def strict(case: Case, op: Any, args: Any, options: Any) -> None:
    """Nothing is broadcast that is not written, no tracer leaks, no key is used twice."""
    run, traced = program(op, options)
    with jax.numpy_rank_promotion("raise"), jax.checking_leaks():
        jax.make_jaxpr(run)(args, traced)
        jax.eval_shape(lambda args, traced: op.reference(*args, **options | traced), args, traced)
    if "key" in traced:
        attached = lambda key: jax.vjp(*_with(op.apply, args, options | {"key": key}))
        for f in (attached, lambda key: op.vjp(*args, **options | {"key": key})):
            with jax.debug_key_reuse(True):
                jax.eval_shape(lambda key, f=f: (v := f(key))[1](v[0]), traced["key"])


def _with(f: Any, args: Any, options: Any) -> Any:
    g, values = on_floats(f, args, options)
    return g, *values


def uncompiled(case: Case, op: Any, args: Any, options: Any) -> None:
    """Inside `jax.disable_jit`, and where no NaN may come up: value and gradient of reference."""
    f, values = on_floats(op.reference, args, options)
    g, _ = on_floats(op.apply, args, options)
    dy = normal_like(jax.eval_shape(f, *values), 12)
    want = jax.jit(pulled(f))(values, dy)
    with jax.disable_jit():
        close(pulled(g)(values, dy), want)
    with jax.debug_nans(True):
        close(pulled(g)(values, dy), want)


class Frozen(collections.abc.Mapping):
    """A mapping of a user's own, registered with JAX."""

    def __init__(self, **items: Any):
        self.items_ = items

    def __getitem__(self, name: str) -> Any:
        return self.items_[name]

    def __iter__(self) -> Any:
        return iter(self.items_)

    def __len__(self) -> int:
        return len(self.items_)


jax.tree_util.register_pytree_node(
    Frozen,
    lambda v: (tuple(v.values()), tuple(v)),
    lambda names, v: Frozen(**dict(zip(names, v, strict=True))),
)


def containers(case: Case, op: Any, args: Any, options: Any) -> None:
    """Params in any mapping that JAX knows have a gradient in the same; others are refused by name."""
    run, traced = program(op, options)

    def within(kind: Any, node: Any) -> Any:
        return kind(**{k: within(kind, node[k]) for k in reversed(node)}) if isinstance(node, dict) else node

    for kind in (collections.OrderedDict, Frozen) if isinstance(args[0], dict) else ():
        held = tuple(within(kind, arg) for arg in args)
        *_, grads = jax.eval_shape(run, held, traced)
        assert jax.tree.structure(grads[0]) == jax.tree.structure(held[0])
        g = lambda params, held=held: loss_of(lambda: op.apply(params, *held[1:], **options))()
        assert jax.tree.structure(jax.eval_shape(jax.grad(g), held[0])) == jax.tree.structure(held[0])
        for use in (op.apply, op.vjp, op.cost):
            with pytest.raises(fn.errors.StructureError, match="a mapping that JAX does not know"):
                use(types.MappingProxyType(args[0]), *args[1:], **options)


def numpy_options(case: Case, op: Any, args: Any, options: Any) -> None:
    """Options that are NumPy's numbers, and lists for tuples, are taken as Python's."""

    def written(value: Any, number: Any) -> Any:
        if isinstance(value, tuple):
            return [written(v, number) for v in value]
        kinds = {bool: np.bool_, int: np.int64, float: np.float64}
        return kinds[type(value)](value) if number and type(value) in kinds else value

    for number in (True, False):
        given = {name: written(value, number) for name, value in options.items()}
        if all(given[name] is options[name] for name in options):
            continue
        with unchecked():
            run, traced = program(op, given)
            plain, _ = program(op, options)
            assert jax.eval_shape(run, args, traced) == jax.eval_shape(plain, args, traced)
            of = lambda o: jax.tree.structure(jax.eval_shape(lambda a: op.vjp(*a, **o), args))
            assert of(given) == of(options)
            assert op.cost(*args, **given) == op.cost(*args, **options)


def x64_between(case: Case, op: Any, args: Any, options: Any) -> None:
    """Forward with x64 and pullback without, and the other way round."""
    args, options = case.draw(dtype="float32")
    g, values = on_floats(op.apply, args, options)
    for x64 in (True, False):
        with jax.enable_x64(x64):
            forwards = jax.eval_shape(lambda: (jax.vjp(g, *values), op.vjp(*args, **options)))
            want = [jax.eval_shape(lambda p, y: p(y), pull, y) for y, pull in forwards]
        with jax.enable_x64(not x64), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Explicitly requested dtype int64")  # of integers kept
            assert [jax.eval_shape(lambda p, y: p(y), pull, y) for y, pull in forwards] == want


def branches(case: Case, op: Any, args: Any, options: Any) -> None:
    """The gradient of a `cond` and of a `switch` with this in one branch lowers; no typed key is kept."""
    g, values = on_floats(op.apply, args, options)
    loss, plain = loss_of(g), lambda *v: sum(jnp.sum(u) for u in v)

    def total(i: Any, *v: Any) -> Any:
        return jax.lax.cond(i == 0, loss, plain, *v) + jax.lax.switch(i, [loss, plain, plain], *v)

    if values:
        jax.jit(jax.grad(total, tuple(range(1, len(values) + 1)))).lower(0, *values)
    kept = jax.tree.leaves(jax.eval_shape(lambda: op.vjp(*args, **options)[1]))
    assert not any(jnp.issubdtype(v.dtype, jax.dtypes.prng_key) for v in kept)


def taylor(case: Case, op: Any, args: Any, options: Any) -> None:
    """`jax.experimental.jet`, where it can differentiate reference."""
    f, values = on_floats(op.reference, args, options)
    g, _ = on_floats(op.apply, args, options)
    series = [[normal_like(v, i) for i in range(2)] for v in values]
    of = lambda h: lambda v, s: jet.jet(h, tuple(v), s)
    try:
        jax.eval_shape(of(f), values, series)
    except (AttributeError, KeyError, jax.errors.UnexpectedTracerError):
        return  # the faults of jet's own, by version
    if values:
        got, want = jax.jit(lambda v, s: (of(g)(v, s), of(f)(v, s)))(values, series)
        close(got, want, 1e-9, 1e-9)


def symbols(case: Case, op: Any, args: Any, options: Any) -> None:
    """Whatever size is a symbol: where plain JAX traces reference, it traces apply; and exports the first."""
    run, traced = program(op, options)
    plain, _ = program(types.SimpleNamespace(apply=op.reference, vjp=_jax_vjp(op)), options)
    sizes = [size for leaf in jax.tree.leaves((args[::-1], traced)) for size in leaf.shape if size > 1]
    exported = False
    for size in dict.fromkeys(sizes):
        (n,) = jax.export.symbolic_shape("n")
        described = jax.tree.map(functools.partial(_with_symbol, n, size), (args, traced))
        try:
            jax.eval_shape(plain, *described)
        except Exception:  # each kind of program fails in its own way
            continue
        try:
            with unchecked():
                jax.eval_shape(run, *described)
                if not exported:
                    jax.export.export(jax.jit(run))(*described)
        except fn.errors.FuncnetError:
            continue  # a number of channels, which groups may not divide
        except Exception as error:
            raise AssertionError(f"a symbol for {size}: {error}") from error
        exported = True


def _with_symbol(n: Any, size: int, v: Any) -> Any:
    return jax.ShapeDtypeStruct(tuple(n if s == size else s for s in v.shape), v.dtype)


def _jax_vjp(op: Any) -> Any:
    def vjp(*args: Any, **options: Any) -> Any:
        f, values = on_floats(op.reference, args, options)
        y, pull = jax.vjp(f, *values)
        return y, pull

    return vjp


# ---- the matrix and the cost ------------------------------------------------------------------------------


def matrix(case: Case, op: Any, args: Any, options: Any) -> None:
    """matrix = the Jacobian of reference without its constant; the pullback is its transpose."""
    first = case.op in X_FIRST
    x, rest = (args[0], args[1:]) if first else (args[-1], args[:-1])
    shape = in_shape(case, args)

    def one(f: Any) -> Any:
        return (lambda v: f(v, *rest, **options)) if first else (lambda v: f(*rest, v, **options))

    v = normal_like(jax.ShapeDtypeStruct(shape, x.dtype), 8)
    batched = v if case.op == "dropout" else np.asarray(v)[None]
    f = one(op.reference)
    y = jax.eval_shape(f, batched)
    dy = normal_like(y, 9)

    def all_of(v: Any, dy: Any) -> Any:
        J = jax.jacobian(f)(v).reshape(y.size, v.size)
        return J, one(op.vjp)(v)[1](dy)[0 if first else -1]

    J, dx = jax.jit(all_of)(batched, dy)
    given = (shape, *rest) if case.op in SOUND else (*rest, shape)
    M = np.asarray(jax.jit(functools.partial(op.matrix, *given, **options))())
    close(M, J)
    close(M.T @ np.asarray(dy).reshape(-1), np.asarray(dx).reshape(-1))


def squares(case: Case, op: Any, args: Any, options: Any) -> None:
    """squares = of each example the squares of its gradient by vjp(reference), summed over all parameters."""
    at = 1 if case.op == "linear_cross_entropy" else 0

    def truth(params: Any, dy: Any) -> Any:
        f = lambda params: op.reference(*args[:at], params, *args[at + 1 :], **options)
        y, pull = jax.vjp(f, params)
        one = lambda dy, kept: jax.tree.map(lambda v: v * align(kept, v), dy)
        examples = jnp.eye(
            len(jax.tree.leaves(y)[0]), dtype=dy[0].dtype if isinstance(dy, tuple) else dy.dtype
        )
        grads = jax.vmap(lambda kept: pull(one(dy, kept)))(examples)
        return sum((g**2).reshape(len(g), math.prod(g.shape[1:])).sum(1) for g in jax.tree.leaves(grads))

    align = lambda kept, v: kept.reshape(-1, *[1] * (v.ndim - 1)) if v.shape[:1] == kept.shape else 0
    dy = normal_like(jax.eval_shape(lambda: op.reference(*args, **options)), 13)
    rest = (None,) * (case.op in ("multihead", *RECURRENT) and len(args) == 2)
    formula = lambda params, dy: op.squares(*args[:at], params, *args[at + 1 :], *rest, dy, **options)
    close(jax.jit(formula)(args[at], dy), jax.jit(truth)(args[at], dy))


def has_squares(case: Case) -> bool:
    """Whether there are parameters, and examples that each have a gradient of their own."""
    if not hasattr(case.module, "squares") or case.options.get("train"):
        return False
    x = case.args[{"linear_cross_entropy": 0, "batch_norm": 2}.get(case.op, 1)]
    several = {
        "embedding": 0,
        "multihead": 2,
        "linear": case.options.get("inputs", 1),
        **dict.fromkeys(RECURRENT, 2),
        **dict.fromkeys(("group_norm", "instance_norm"), 1 + (case.options.get("spatial") or 0)),
    }
    own: int = several.get(case.op, 1)
    if case.op.startswith("conv"):
        own = len(case.args[0]["w"].shape) - 1
    sinks = case.op == "multihead" and case.args[0].get("sinks")
    return len(x.shape) > own and not sinks


def in_shape(case: Case, args: Any) -> tuple[int, ...]:
    """The shape of one example: what is left of x without its batch axes."""
    x = args[0] if case.op in X_FIRST else args[-1]
    if case.op == "dropout":
        return x.shape
    features = {
        "linear": case.options.get("inputs", 1),
        "matmul": 2,
        "conv": 0,
        "deltas": 2,
        "istft": 3,
        "lfilter": 1,
        "mel": 1,
        "pre_emphasis": 1,
        "stft": 1,
    }.get(case.op, 0)
    if case.op in ("conv", "conv_transpose"):
        features = args[0]["w"].ndim - 1
    spatial = next(
        (v for k in ("kernel", "size", "scale", "padding", "factor") if (v := case.options.get(k))), ()
    )
    if not features and case.op != "dropout":
        features = len(spatial) + 1
    return x.shape[x.ndim - features :]


def cost(case: Case, op: Any, args: Any, options: Any) -> None:
    """flops = those of the products in reference's jaxpr; bytes = every input and output once."""
    f = functools.partial(op.reference, **options)
    counted = op.cost(*args, **options)
    assert counted.flops == products(jax.make_jaxpr(f)(*args).jaxpr)
    arrays = [v for v in jax.tree.leaves((args, options, jax.eval_shape(f, *args))) if hasattr(v, "dtype")]
    assert counted.bytes == sum(v.size * v.dtype.itemsize for v in arrays)
    described = jax.tree.map(lambda v: jax.ShapeDtypeStruct(v.shape, v.dtype), args)
    assert op.cost(*described, **options) == counted


def products(jaxpr: Any) -> int:
    """2 x multiply-adds of the dot and convolution equations."""
    total = 0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            (contract, _), _ = eqn.params["dimension_numbers"]
            total += 2 * eqn.outvars[0].aval.size * math.prod(eqn.invars[0].aval.shape[a] for a in contract)
        elif eqn.primitive.name == "conv_general_dilated":
            w = eqn.invars[1].aval
            total += (
                2 * eqn.outvars[0].aval.size * w.size // w.shape[eqn.params["dimension_numbers"].rhs_spec[0]]
            )
        times = eqn.params["length"] if eqn.primitive.name == "scan" else 1
        for inner in jax.tree.leaves(
            list(eqn.params.values()), is_leaf=lambda v: hasattr(v, "eqns") or hasattr(v, "jaxpr")
        ):
            if hasattr(inner, "jaxpr") or hasattr(inner, "eqns"):
                total += times * products(getattr(inner, "jaxpr", inner))
    return total


# ---- the dtypes of users ----------------------------------------------------------------------------------


def rounded(case: Case, op: Any, dtype: str) -> None:
    """In `dtype`, value and gradient err at most twice as much as those of reference in `dtype`.

    Both against reference in float64 on the same rounded arguments. Result and cotangents have the dtypes
    that they should.
    """
    args, options = case.draw(dtype=dtype)
    plain, values = on_floats(op.reference, args, options)
    fast, _ = on_floats(op.apply, args, options)
    dy = normal_like(jax.eval_shape(plain, *values), 10)
    with jax.enable_x64(True):
        wide = lambda v: np.asarray(v).astype("float64") if is_float(v) else v
        widen = functools.partial(jax.tree.map, wide)
        truth, wide_values = on_floats(op.reference, widen(args), options)
        run = jax.jit(functools.partial(_both, truth), compiler_options=PLAINLY)
        want = jax.tree.map(np.asarray, run(wide_values, widen(dy)))
    got, theirs = (jax.jit(functools.partial(_both, f))(values, dy) for f in (fast, plain))
    assert [v.dtype for v in got[1]] == [v.dtype for v in values], (
        "a cotangent has another dtype than its leaf"
    )
    assert jax.tree.map(lambda v: v.dtype, got[0]) == jax.tree.map(lambda v: v.dtype, theirs[0])
    # A gradient that is zero by cancellation (of a key's bias, say) carries the rounding of its large terms.
    largest = max([1.0, *(float(np.abs(w).max()) for w in jax.tree.leaves(want) if w.size)])
    for g, t, w in zip(jax.tree.leaves(got), jax.tree.leaves(theirs), jax.tree.leaves(want), strict=True):
        if not g.size:
            continue
        g, t, w = (np.asarray(v, np.float64) for v in (g, t, w))
        error, allowed = np.abs(g - w).max(), np.abs(t - w).max()
        scale, eps = np.abs(w).max(), float(jnp.finfo(dtype).eps)
        slack = eps * scale if scale > eps * largest else 4 * eps * largest
        slack += 16 * float(jnp.finfo("float32").eps) * largest
        assert error <= 2 * allowed + slack, (
            f"{dtype}: error {error:.1e}, reference {allowed:.1e} + {slack:.1e}"
        )


def _both(f: Any, values: Any, dy: Any) -> Any:
    y, pull = jax.vjp(f, *values)
    return y, list(pull(dy))


def large(case: Case, op: Any) -> None:
    """At sizes where XLA:CPU has miscompiled: jitted = eager = reference, random and constant cotangents."""
    args, options = case.draw(dtype="float32")
    f, values = on_floats(op.reference, args, options)
    g, _ = on_floats(op.apply, args, options)
    y, pull = jax.vjp(f, *values)
    jitted = jax.jit(lambda v, dy: (g(*v), jax.vjp(g, *v)[1](dy)))
    formula = jax.jit(lambda a, dy: op.vjp(*a, **options)[1](dy))
    for dy in (normal_like(y, 11), jax.tree.map(jnp.ones_like, y)):
        want = list(pull(dy))
        noise = 3e-5 * max([1.0, *(float(jnp.abs(w).max()) for w in want)])
        value, grads = jitted(values, dy)
        close((value, list(grads)), (y, want), 3e-5, noise)
        close(with_zeros(formula(args, dy), args), want, 3e-5, noise)
    summed = jax.jit(
        jax.grad(lambda *v: sum(jnp.sum(u) for u in jax.tree.leaves(g(*v))), tuple(range(len(values))))
    )
    if values:
        close(list(summed(*values)), want, 3e-5, noise)


LAWS = [
    naive,
    finite_differences,
    forward,
    formula,
    cost,
    attached,
    no_retrace,
    forward_mode,
    second_order,
    jacobians,
    batching,
    control_flow,
    sharding,
    export,
    strict,
    containers,
    numpy_options,
    x64_between,
    branches,
    taylor,
    symbols,
]
