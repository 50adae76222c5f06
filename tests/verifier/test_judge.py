"""One rule judges: each of its laws, with the wrong formula that it finds and the right one that passes."""

import linecache
import tracemalloc
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import funcnet as fn
from funcnet.errors import ValueRangeError
from funcnet.testing import assert_gradients
from funcnet.verifier import FormulaError, laws, trace
from funcnet.verifier.formulas import proof
from funcnet.verifier.formulas.expression import formula

RNG = np.random.default_rng(7)
BF16 = jnp.bfloat16


def normal(*shape, dtype="float32"):
    return jnp.asarray(RNG.standard_normal(shape), dtype)


def kinds(report):
    return [finding.kind for finding in report.findings]


X = normal(7, 5)
A_ZERO = jnp.abs(X).at[0, 0].set(0)
MASK = jnp.asarray(RNG.random((5, 7)) > 0.3).at[:, 0].set(True)
masked = lambda x: jax.nn.log_softmax(jnp.where(MASK, x, -jnp.inf))
silu = lambda x: x * jax.nn.sigmoid(x)
narrow_product = lambda x, w: (x.astype(BF16) @ w.astype(BF16)).astype(jnp.float32)
unit = lambda x: x / jnp.sqrt((x * x).sum(-1, keepdims=True))
norm = lambda x: jnp.sqrt((x * x).sum(-1, keepdims=True))
distance = lambda x, y: jnp.sqrt(((x - y) ** 2).sum(-1))
away = lambda x, y, dy: (x - y) * (dy / jnp.where(distance(x, y) == 0, 1, distance(x, y)))[:, None]
in_three_steps = lambda x: lax.while_loop(lambda c: c[1] < 3, lambda c: (jnp.sin(c[0]), c[1] + 1), (x, 0))[0]
tied = jnp.round(normal(4, 6))


class Layer(NamedTuple):
    w: object
    b: object


LAYER = Layer(normal(3, 4), normal(4))
Z = lax.complex(normal(3, 4), normal(3, 4))

# forward, formula, args: wrong ones with one of the names that are true
WRONG = {
    "narrow: the sign of a product": (
        narrow_product,
        lambda x, w, dy: (-(dy @ w.T), x.T @ dy),
        (normal(30, 20), normal(20, 5)),
        "sign",
    ),
    "narrow: a factor": (
        jnp.sin,
        lambda x, dy: (dy * jnp.cos(x) * 1.2).astype(BF16),
        (X.astype(BF16),),
        "scale",
    ),
    "narrow: a term": (
        silu,
        lambda x, dy: (dy * jax.nn.sigmoid(x)).astype(BF16),
        (X.astype(BF16),),
        "missing_term",
    ),
    "narrow within: a term": (
        lambda x: unit(x.astype(BF16)).astype(x.dtype),
        lambda x, dy: (dy.astype(BF16) / norm(x.astype(BF16))).astype(x.dtype),
        (X,),
        "missing_term",
    ),
    "narrow: only where it is narrow": (
        jnp.sin,
        lambda x, dy: dy * jnp.cos(x) * (1.25 if x.dtype == BF16 else 1),
        (X.astype(BF16),),
        "precision",
    ),
    "large: the dtype": (
        jnp.sin,
        lambda x, dy: (dy * jnp.cos(x)).astype(jnp.float16),
        (normal(300, 200),),
        "dtype",
    ),
    "not finite: beside an infinity": (jnp.sqrt, lambda x, dy: 3 * dy, (A_ZERO,), ""),
    "not finite: no sum": (masked, lambda x, dy: jnp.where(MASK, dy, 0), (normal(5, 7),), ""),
    "not finite: NaN where the truth is finite": (
        jnp.sin,
        lambda x, dy: dy * jnp.cos(x) * x / x,
        (X.at[0, 0].set(0),),
        "nan",
    ),
    "a stop that is ignored": (lambda x: x * lax.stop_gradient(x), lambda x, dy: 2 * x * dy, (X,), ""),
    "straight through": (
        lambda x: x + lax.stop_gradient(jnp.round(x) - x),
        lambda x, dy: 0 * x,
        (X,),
        "zero",
    ),
    "a kink: twice its side": (
        lambda x: jnp.maximum(x, 0),
        lambda x, dy: dy * (x > 0) + 2 * dy * (x == 0),
        (X.at[0, 0].set(0),),
        "",
    ),
    "ties: all of them": (lambda x: x.max(-1), lambda x, dy: dy[:, None] * jnp.ones_like(x), (tied,), ""),
    "ties: each of them": (
        lambda x: x.max(-1),
        lambda x, dy: dy[:, None] * (x == x.max(-1, keepdims=True)),
        (tied,),
        "",
    ),
    "by numbers: one step is missing": (
        in_three_steps,
        lambda x, dy: dy * jnp.cos(x) * jnp.cos(jnp.sin(x)),
        (X,),
        "",
    ),
    "complex: a factor": (
        lambda z, x: z * x,
        lambda z, x, dy: (999 * dy * x, (dy * z).real),
        (Z, normal(3, 4)),
        "",
    ),
    "complex: conjugated": (lambda z: z * z, lambda z, dy: 2 * jnp.conj(z) * dy, (Z,), ""),
    "leaves of very different size": (
        lambda x, w: x @ w,
        lambda x, w, dy: (dy @ w.T, 0 * w),
        (X * 1e-10, normal(5, 3) * 1e10),
        "zero",
    ),
    "elements of very different size": (
        lambda x: jnp.exp(x),
        lambda x, dy: dy * jnp.where(x < -40, -jnp.exp(x), jnp.exp(x)),
        (X.at[0, 0].set(-45),),
        "",
    ),
}
RIGHT = {
    "narrow: a product": (
        narrow_product,
        lambda x, w, dy: (dy @ w.T, x.T @ dy),
        (normal(30, 20), normal(20, 5)),
    ),
    "narrow: otherwise rounded": (
        silu,
        lambda x, dy: (lambda s, u: dy.astype("float32") * (s + u * s * (1 - s)))(
            jax.nn.sigmoid(x.astype("float32")), x.astype("float32")
        ).astype(BF16),
        (X.astype(BF16),),
    ),
    "narrow: as it is": (
        silu,
        lambda x, dy: dy * (lambda s: s + x * s * (1 - s))(jax.nn.sigmoid(x)),
        (X.astype(BF16),),
    ),
    "narrow: float16": (
        unit,
        lambda x, dy: (dy - unit(x) * (unit(x) * dy).sum(-1, keepdims=True)) / norm(x),
        (X.astype("float16"),),
    ),
    "large, in float32": (jnp.sin, lambda x, dy: dy * jnp.cos(x), (normal(300, 200),)),
    "in NumPy": (jnp.sin, lambda x, dy: np.asarray(dy) * np.cos(np.asarray(x)), (X,)),
    "not finite: one infinity": (jnp.sqrt, lambda x, dy: dy / (2 * jnp.sqrt(x)), (A_ZERO,)),
    "not finite: where-sqrt": (
        lambda x: jnp.where(x > 0, jnp.sqrt(jnp.where(x > 0, x, 1)), 0),
        lambda x, dy: jnp.where(x > 0, dy / (2 * jnp.sqrt(jnp.where(x > 0, x, 1))), 0),
        (X,),
    ),
    "not finite: masked log-softmax": (
        masked,
        lambda x, dy: jnp.where(
            MASK, dy - jnp.exp(masked(x)) * jnp.where(MASK, dy, 0).sum(-1, keepdims=True), 0
        ),
        (normal(5, 7),),
    ),
    "not finite: a distance of 0": (
        distance,
        lambda x, y, dy: (away(x, y, dy), -away(x, y, dy)),
        (X, X.at[1:].add(1.0)),
    ),
    "a stop": (lambda x: x * lax.stop_gradient(x), lambda x, dy: x * dy, (X,)),
    "straight through": (lambda x: x + lax.stop_gradient(jnp.round(x) - x), lambda x, dy: dy, (X,)),
    "a kink: its right side": (
        lambda x: jnp.maximum(x, 0),
        lambda x, dy: dy * (x >= 0),
        (X.at[0, 0].set(0),),
    ),
    "kinks: a layer of zeros": (
        lambda x: jnp.maximum(x @ X.T, 0),
        lambda x, dy: (dy * (x @ X.T > 0)) @ X,
        (normal(3, 5).at[1].set(0),),
    ),
    "ties: the first": (
        lambda x: x.max(-1),
        lambda x, dy: dy[:, None] * jax.nn.one_hot(x.argmax(-1), 6, dtype=x.dtype),
        (tied,),
    ),
    "kinks: both edges of a clip": (
        lambda x: jnp.clip(x, 0, 1).mean(),
        lambda x, dy: dy * ((x >= 0) & (x <= 1)) / x.size,
        (X.at[0].set(0).at[1].set(1),),
    ),
    "by numbers": (
        in_three_steps,
        lambda x, dy: dy * jnp.cos(x) * jnp.cos(jnp.sin(x)) * jnp.cos(jnp.sin(jnp.sin(x))),
        (X,),
    ),
    "by numbers: NumPy": (lambda x: np.sin(np.asarray(x)), lambda x, dy: dy * jnp.cos(x), (X,)),
    "complex": (lambda z, x: z * x, lambda z, x, dy: (dy * x, (dy * z).real), (Z, normal(3, 4))),
    "complex: absolute value": (jnp.abs, lambda z, dy: dy * jnp.conj(z) / jnp.abs(z), (Z,)),
    "one argument that is a tuple": (
        lambda p: jnp.sin(p.w) * p.b,
        lambda p, dy: Layer(dy * jnp.cos(p.w) * p.b, (dy * jnp.sin(p.w)).sum(0)),
        (LAYER,),
    ),
    "cancellation": (
        lambda x: x.var(-1),
        lambda x, dy: 2 * dy[:, None] * (x - x.mean(-1, keepdims=True)) / x.shape[-1],
        (X + 1000,),
    ),
    "saturated": (
        jax.nn.sigmoid,
        lambda x, dy: dy * jax.nn.sigmoid(x) * (1 - jax.nn.sigmoid(x)),
        (X.at[0, 0].set(40),),
    ),
    "zero but for rounding": (lambda x: jax.nn.softmax(x).sum(-1), lambda x, dy: 0 * x * dy[:, None], (X,)),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_found(name):
    forward, backward, args, kind = WRONG[name]
    with jax.numpy_dtype_promotion("standard"):
        report = fn.verify(forward, backward, args)
    assert report.wrong, str(report)
    assert not kind or kinds(report)[0] == kind, str(report)


@pytest.mark.parametrize("name", RIGHT)
def test_what_is_right_passes(name):
    forward, backward, args = RIGHT[name]
    with jax.numpy_dtype_promotion("standard"):
        for seed in range(2):
            report = fn.verify(forward, backward, args, seed=seed)
            assert report.ok, str(report)


def test_what_is_not_finite_is_counted():
    report = fn.verify(jnp.sqrt, lambda x, dy: dy / (2 * jnp.sqrt(x)), (A_ZERO,))
    assert "x: 1 of 35 elements are set apart: the truth is not known there" in report.notes
    with pytest.raises(ValueRangeError, match="nothing in the result of the forward pass is finite"):
        fn.verify(lambda x: x / 0, lambda x, dy: dy, (X,))


def test_where_nothing_can_be_known_the_verdict_is_undecided():
    report = fn.verify(lambda x: jnp.sqrt(x), lambda x, dy: dy / (2 * jnp.sqrt(x)), (jnp.zeros(3),))
    assert not report.ok
    assert not report.wrong
    assert [row.unseen for row in report.unseen] == ["undecided: the true gradient is not finite here"]
    cancelled = lambda x: ((x + 1e15) - 1e15) ** 2
    report = fn.verify(cancelled, lambda x, dy: 2 * x * dy, (X,))
    assert not report.wrong
    assert "could hide" in report.unseen[0].unseen
    assert report.verdict == "0 of 1 gradients verified, and right"


@pytest.mark.parametrize(
    "wrong", [lambda x, dy: dy * jnp.ones_like(x) / 35, lambda x, dy: jnp.asarray([dy] * 7)]
)
def test_what_is_wrong_at_other_sizes_is_no_convention(wrong):
    x = X if wrong(X, X.sum()).ndim == 2 else normal(7)
    forward = (lambda x: x.mean()) if x.ndim == 2 else (lambda x: x.sum())
    assert fn.verify(forward, wrong, (x,)).ok
    with pytest.raises(FormulaError):
        assert_gradients(forward, wrong, (x,))


# ---- what the arguments do not show -----------------------------------------------------------------------


def not_seen(report):
    return next((text for text in report.notes if text.startswith("not seen: ")), "")


SQUARE = normal(5, 5)
UNSEEN_SIZES = {
    "the other axis of a square": (
        lambda x: x.mean(1),
        lambda n: lambda x, dy: jnp.ones_like(x) * dy[:, None] / x.shape[n],
        (SQUARE,),
    ),
    "two squares": (
        lambda x, w: x @ w / x.shape[1],
        lambda n: lambda x, w, dy: (dy @ w.T / x.shape[n], x.T @ dy / x.shape[n]),
        (SQUARE, SQUARE + 1),
    ),
    "a batch of 1": (
        lambda x: x.mean(0),
        lambda n: lambda x, dy: dy * jnp.ones_like(x) / (x.shape[0] if n else 1),
        (normal(1, 5),),
    ),
}


@pytest.mark.parametrize("name", UNSEEN_SIZES)
def test_ties_of_sizes_are_broken(name):
    forward, backward, args = UNSEEN_SIZES[name]
    assert fn.verify(forward, backward(1), args).ok
    assert fn.verify(forward, backward(0), args).wrong


def test_axes_that_cannot_be_parted_are_noted():
    square = lambda x: jnp.trace(x @ x)
    report = fn.verify(square, lambda x, dy: 2 * dy * x.T, (SQUARE,))
    assert report.ok
    assert not_seen(report) == "not seen: axes of equal size of x, which could not be parted"
    eye = fn.verify(jnp.trace, lambda x, dy: dy * jnp.eye(len(x), dtype=x.dtype), (SQUARE,))
    assert eye.ok, "a formula for squares only"


def test_an_identity_hides_nothing():
    eye = jnp.eye(5, dtype="float32")
    assert fn.verify(lambda x, w: x @ w, lambda x, w, dy: (dy @ w, x.T @ dy), (X, eye)).wrong
    report = fn.verify(lambda x, w: x @ w, lambda x, w, dy: (dy @ w.T, x.T @ dy), (X, eye))
    assert report.ok
    assert not not_seen(report)


def test_special_arguments_are_noted_where_they_matter():
    symmetric, v = SQUARE + SQUARE.T, normal(5)
    report = fn.verify(
        lambda a, x: x @ a @ x, lambda a, x, dy: (dy * jnp.outer(x, x), 2 * dy * a @ x), (symmetric, v)
    )
    assert "that a is symmetric: where it is otherwise, the gradient of x is wrong" in not_seen(report)
    general = lambda a, x, dy: (dy * jnp.outer(x, x), dy * (a + a.T) @ x)
    assert "symmetric" not in not_seen(fn.verify(lambda a, x: x @ a @ x, general, (symmetric, v)))
    ids, take = jnp.arange(4, dtype="int32"), lambda t, ids: t[ids]
    report = fn.verify(take, lambda t, ids, dy: (jnp.zeros_like(t).at[ids].set(dy), None), (X, ids))
    assert "that ids holds no number twice" in not_seen(report)
    assert not not_seen(
        fn.verify(take, lambda t, ids, dy: (jnp.zeros_like(t).at[ids].add(dy), None), (X, ids))
    )


def test_a_branch_that_no_argument_reached_is_noted():
    def huber(x):
        return jnp.where(jnp.abs(x) < 1, x * x / 2, jnp.abs(x) - 0.5)  # HERE

    backward = lambda x, dy: dy * jnp.where(jnp.abs(x) < 1, x, 5 * jnp.sign(x))
    text = not_seen(fn.verify(huber, backward, (X * 0.1,)))
    here = next(i for i, line in enumerate(linecache.getlines(__file__), 1) if line.endswith("# HERE\n"))
    assert text.startswith("not seen: a branch that no argument reached, at ")
    assert f"test_judge.py:{here} (`where`)" in text
    assert fn.verify(huber, backward, (X * 3,)).wrong


def test_a_gradient_that_is_zero_everywhere_is_noted():
    report = fn.verify(lambda x: jnp.sign(x) + 0 * x, lambda x, dy: 0 * x * dy, (X,))
    assert not_seen(report) == "not seen: the gradient of x, which is zero everywhere"


# ---- rules ------------------------------------------------------------------------------------------------


def ruled(factor=1.0, value=0.0):
    @jax.custom_vjp
    def s(x):
        return jnp.sin(x)

    def backward(x, dy):
        return (dy * jnp.cos(x) * factor,)

    s.defvjp(lambda x: (jnp.sin(x) + value, x), backward)
    return s


WAYS = {
    "itself": lambda s: s,
    "jit": jax.jit,
    "scan": lambda s: lambda x: lax.scan(lambda c, t: (s(c) + t, None), x, jnp.arange(4, dtype=x.dtype))[0],
    "cond": lambda s: lambda x: lax.cond(x.sum() > -1e9, s, jnp.cos, x),
    "vmap of checkpoint": lambda s: jax.vmap(jax.checkpoint(s)),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_rule_is_met_wherever_it_is_called(way):
    assert fn.verify(WAYS[way](ruled()), (X,)).ok
    report = fn.verify(WAYS[way](ruled(1.2)), (X,), budget=1.0)
    assert report.wrong
    assert "test_judge.py" in report.findings[0].location


def test_a_function_without_a_rule_is_not_compared_with_itself():
    report = fn.verify(jnp.sin, (X,))
    assert not report.ok
    assert report.unseen[0].unseen == "not verified: f has no rule: nothing to verify"
    assert fn.verify(jnp.sin, (X,), reference=lambda x: jnp.sin(x)).ok


def test_the_values_of_a_rule_are_those_of_its_definition():
    assert kinds(fn.verify(ruled(value=1.0), (X,))) == ["value"]
    assert kinds(fn.verify(ruled(), (X,), reference=lambda x: jnp.sin(x) + 1)) == ["value"]


def test_a_rule_in_the_forward_pass_says_what_its_derivative_is():
    reverse = jax.custom_vjp(lambda x: x)
    reverse.defvjp(lambda x: (x, None), lambda _, dy: (-dy,))
    forward, w = lambda x, w: reverse(x) @ w, normal(5, 3)
    assert fn.verify(forward, lambda x, w, dy: (-dy @ w.T, x.T @ dy), (X, w)).ok
    assert fn.verify(forward, lambda x, w, dy: (dy @ w.T, x.T @ dy), (X, w)).wrong


def test_a_rule_may_mean_to_differ():
    rounded = jax.custom_vjp(lambda x: jnp.round(x))
    rounded.defvjp(lambda x: (jnp.round(x), None), lambda _, dy: (dy,))
    assert fn.verify(rounded, (X,)).wrong
    report = fn.verify(rounded, (X,), expect="differs")
    assert report.ok
    assert report.rows[0].note.startswith("differs, as declared, by ")
    with pytest.raises(ValueRangeError, match="expect is 'more'"):
        fn.verify(rounded, (X,), expect="more")


def test_the_ghost_of_cholesky_is_found():
    """`jnp.linalg.cholesky` symmetrises its argument, and with it the gradient."""
    a = X.T @ X + 5 * jnp.eye(5, dtype=X.dtype)

    def backward(a, dy):
        l = jnp.linalg.cholesky(a, symmetrize_input=False)
        p = jnp.tril(l.T @ dy)
        p = p - jnp.diag(jnp.diag(p)) / 2
        s = jnp.linalg.solve(l.T, jnp.linalg.solve(l.T, p.T).T)
        return (s + s.T) / 2

    assert fn.verify(jnp.linalg.cholesky, backward, (a,)).ok


# ---- large arrays -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [1.0, 1 + 1e-9])
def test_a_large_product_is_judged_by_few_products(monkeypatch, factor):
    counted = []
    product = trace.NUMPY["dot_general"]

    def counting(a, b, **options):
        counted.extend([1] if np.size(a) > 50_000 else [])  # others are at smaller sizes
        return product(a, b, **options)

    monkeypatch.setitem(trace.NUMPY, "dot_general", counting)
    args = normal(300, 301), normal(301, 302)
    backward = lambda x, w, dy: (dy @ w.T, x.T @ dy * factor)
    report = fn.verify(lambda x, w: x @ w, backward, args, budget=0.0)
    assert report.ok == (factor == 1.0)
    if report.ok:
        assert len(counted) <= 6, "and two in float32: 8"
        assert [row.ok for row in report.rows] == [True, True]


SHARES = "softmax(logsumexp(c) * sum(B.T @ B, axis=1))"  # one of them is 0.9999


@pytest.mark.parametrize("factor", [1, 1 + 1e-9])
def test_a_formula_may_lose_digits_that_autodiff_keeps(factor):
    rng = np.random.default_rng(0)
    _, B, c = (rng.standard_normal(shape) for shape in ((5, 5), (5, 3), 5))
    forward = formula(f"-3.4 * {SHARES}", ["B", "c"])
    there = {"B": B, "c": c, "y": np.asarray(forward(B=B, c=c))}
    t = f"(y * (dy - {factor!r} * (dy @ {SHARES})))"
    text = f"logsumexp(c) * (outer(sum(B, axis=1), {t}) + (B @ {t})[:, None])"
    assert bool(proof.doubts(forward, there, {"B": text}, (), 0)) == (factor != 1)


# ---- what it costs ----------------------------------------------------------------------------------------

LARGE = {
    "right": lambda x, w, dy: (dy @ w.T, x.T @ dy),
    "transpose": lambda x, w, dy: (dy @ w.T, x @ dy),
}


@pytest.mark.parametrize("name", LARGE)
def test_large_products_are_few_and_their_arrays_not_copied(name, monkeypatch):
    n, products, by_jax, eager = 512, [], [], []
    x, w = normal(n, n), normal(n, n)

    def forward(x, w):
        eager.extend([1] * (x.size == n * n and not isinstance(x, jax.core.Tracer)))
        return x @ w

    def counted(eqn, operands, apply=trace.apply):
        products.extend([1] * (eqn.name == "dot_general" and np.size(operands[0]) == n * n))
        return apply(eqn, operands)

    def jitted(*given, jitted=laws._jitted):
        by_jax.append(2)
        return jitted(*given)

    monkeypatch.setattr(trace, "apply", counted)
    monkeypatch.setattr(laws, "_jitted", jitted)
    tracemalloc.start()
    report = fn.verify(forward, LARGE[name], (x, w), budget=0.0)
    peak = tracemalloc.get_traced_memory()[1] / (8 * n * n)
    tracemalloc.stop()
    assert [row.ok for row in report.rows] == [True, name == "right"]
    assert not eager
    assert len(products) + sum(by_jax) <= 8
    assert peak < 20, f"{peak:.1f} arrays"


def _focal(x, dy, *, gamma):
    p = jax.nn.sigmoid(x)
    return dy * (gamma * (1 - p) ** gamma * p * jax.nn.log_sigmoid(x) - (1 - p) ** (gamma + 1))


@pytest.mark.parametrize(
    ("forward", "backward", "static"),
    [
        (
            lambda x, *, gamma: -((1 - jax.nn.sigmoid(x)) ** gamma) * jax.nn.log_sigmoid(x),
            _focal,
            {"gamma": 2},
        ),
        (
            lambda x, *, mask, on: (x * x * mask).sum(-1) if on else x.sum(-1),
            lambda x, dy, *, mask, on: (2 * x * mask if on else jnp.ones_like(x)) * dy[:, None],
            {"mask": jnp.ones((7, 5), bool), "on": True},
        ),
        (
            lambda x: x.max(-1),
            lambda x, dy: (
                dy[:, None]
                * (top := x == x.max(-1, keepdims=True))
                / top.sum(-1, keepdims=True, dtype=x.dtype)
            ),
            None,
        ),
        (jnp.sort, lambda x, dy: dy[jnp.arange(7)[:, None], jnp.argsort(jnp.argsort(x))], None),
    ],
)
def test_nothing_is_said_of_what_is_right_otherwise_too(forward, backward, static):
    report = fn.verify(forward, backward, (X,), static=static)
    assert report.ok
    assert not any("not seen" in note for note in report.notes), report


def test_kinks_are_set_apart_where_the_truth_is_numerical():
    back = lambda by: lambda x, dy: by * np.asarray(dy) * (np.asarray(x) > 0)
    right, wrong = (
        fn.verify(lambda x: np.maximum(np.asarray(x), 0), back(by), (X.at[0].set(0),), budget=0.0)
        for by in (1.0, 1.2)
    )
    assert right.ok
    assert any("5 of 35 elements are set apart" in note for note in right.notes)
    assert wrong.wrong


def test_a_mended_line_says_what_it_takes_for_granted():
    a = jax.random.normal(jax.random.key(3), (5, 5))
    back = lambda x, a, dy: (3 * dy * (a @ x), dy * x[:, None] * x)
    (found,) = fn.verify(lambda x, a: x @ a @ x, back, (X[0], a + a.T)).findings
    assert found.code
    assert found.given == "a is symmetric"
    assert "right where a is symmetric" in str(found)
