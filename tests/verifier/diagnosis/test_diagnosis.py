"""The mistake by its name: one wrong formula per kind, what is no mistake, and what cannot be verified."""

import json
import linecache
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import funcnet as fn
from funcnet.errors import DTypeError, ShapeError, ValueRangeError
from funcnet.testing import assert_gradients
from funcnet.verifier import KINDS, Finding, FormulaError


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


X, W, B = normal(7, 11), normal(11, 13, seed=1), normal(13, seed=2)
A, C = normal(5, 5, seed=3), normal(5, 5, seed=4)
SIGNAL, KERNEL = normal(9, seed=5), normal(3, seed=6)


def affine(x, w, b):
    return x @ w + b


def product(a, c):
    return a @ c


def softmax(x):
    e = jnp.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def norm(x):
    centred = x - x.mean(-1, keepdims=True)
    return centred / jnp.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)


def norm_gradient(x, dy, mean=True, variance=True):
    centred = x - x.mean(-1, keepdims=True)
    r = 1 / jnp.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    h = centred * r
    dx = dy
    if mean:
        dx = dx - dy.mean(-1, keepdims=True)
    if variance:
        dx = dx - h * (dy * h).mean(-1, keepdims=True)
    return r * dx


def convolved(x, k):
    """y[t] = Σ k[j] x[t + j]."""
    return sum(x[j : j + x.shape[0] - k.shape[0] + 1] * k[j] for j in range(k.shape[0]))


def spread(dy, k):
    padded = jnp.pad(dy, k.shape[0] - 1)
    return convolved(padded, k)


def gained(x, w):
    return jnp.tanh(x) * w


def half_precision(x, w, b, dy):
    dw = x.T @ dy
    return dy @ w.T, dw.astype(jnp.float16) if w.dtype == jnp.float32 else dw, dy.sum(0)


def softmax_gradient(x, dy):
    p = softmax(x)
    return p * (dy - (p * dy).sum(-1, keepdims=True))


def gained_gradient(x, w, dy):
    return dy * w * (1 - jnp.tanh(x) ** 2), (dy * jnp.tanh(x)).sum(0)


GAINED = (X, normal(11))
# kind: forward, backward, args, the argument at fault
WRONG = {
    "sign": (affine, lambda x, w, b, dy: (dy @ w.T, -(x.T @ dy), dy.sum(0)), (X, W, B), "w"),
    "scale": (affine, lambda x, w, b, dy: (dy @ w.T, x.T @ dy / x.shape[0], dy.sum(0)), (X, W, B), "w"),
    "transpose": (product, lambda a, c, dy: (dy @ c, a.T @ dy), (A, C), "a"),
    "zero": (affine, lambda x, w, b, dy: (dy @ w.T, x.T @ dy, None), (X, W, B), "b"),
    "missing_term": (gained, lambda x, w, dy: (dy * w, gained_gradient(x, w, dy)[1]), GAINED, "x"),
    "extra_term": (softmax, lambda x, dy: softmax_gradient(x, dy) + dy, (X,), "x"),
    "missing_batch_sum": (affine, lambda x, w, b, dy: (dy @ w.T, x.T @ dy, dy), (X, W, B), "b"),
    "wrong_axis": (lambda x, b: x * 2 + b, lambda x, b, dy: (2 * dy, dy.sum(1)), (A, normal(5)), "b"),
    "unbroadcast": (lambda x, s: x * s, lambda x, s, dy: (dy * s, dy * x), (X, normal(7, 1)), "s"),
    "ignores_cotangent": (
        softmax,
        lambda x, dy: softmax_gradient(x, jnp.ones_like(dy).at[0].set(2)),
        (X,),
        "x",
    ),
    "nonlinear_in_cotangent": (softmax, lambda x, dy: softmax_gradient(x, dy * dy), (X,), "x"),
    "wrong_residual": (gained, lambda x, w, dy: (gained_gradient(x, w, dy)[0], (dy * x).sum(0)), GAINED, "w"),
    "mask": (
        lambda x, w: jnp.maximum(x, 0) @ w,
        lambda x, w, dy: (dy @ w.T, jnp.maximum(x, 0).T @ dy),
        (X, W),
        "x",
    ),
    "flip": (convolved, lambda x, k, dy: (spread(dy, k), convolved(x, dy)), (SIGNAL, KERNEL), "x"),
    "shift": (
        convolved,
        lambda x, k, dy: (jnp.roll(spread(dy, k[::-1]), 1), convolved(x, dy)),
        (SIGNAL, KERNEL),
        "x",
    ),
    "swapped": (
        lambda a, c: a * jnp.sin(c),
        lambda a, c, dy: (dy * a * jnp.cos(c), dy * jnp.sin(c)),
        (A, C),
        "a",
    ),
    "statistics_constant": (norm, lambda x, dy: norm_gradient(x, dy, variance=False), (X,), "x"),
    "nan": (affine, lambda x, w, b, dy: (dy @ w.T, x.T @ dy, dy.sum(0) / 0), (X, W, B), "b"),
    "shape": (affine, lambda x, w, b, dy: (dy @ w.T, x.T @ dy, dy.sum()), (X, W, B), "b"),
    "dtype": (affine, half_precision, (X, W, B), "w"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_the_mistake_is_named(kind):
    forward, backward, args, argument = WRONG[kind]
    report = fn.verify(forward, backward, args)
    assert not report.ok
    named = [
        f.kind
        for f in report.findings
        if f.argument.replace("x", argument) == argument or f.argument == argument
    ]
    assert named[0] == kind, str(report)
    assert {f.kind for f in report.findings} <= KINDS.keys()


def three_taps(x, k):
    """y[t] = Σ k[j] x[t + j], for three taps and no other number."""
    return sum(x[j : j + x.shape[0] - 2] * k[j] for j in range(3))


def three_taps_gradient(x, k, dy, order=(0, 1, 2)):
    dx = jnp.zeros_like(x)
    for j in range(3):
        dx = dx.at[j : j + dy.shape[0]].add(dy * k[j])
    return dx, jnp.stack([x[j : j + dy.shape[0]] @ dy for j in order])


MASK = np.asarray(np.random.default_rng(7).random((7, 11)) < 0.5)
# what finds it: kind, words of the report, forward, backward, args
FOUND = {
    "linear in 2·dy but not in -dy": (
        "nonlinear_in_cotangent",
        "-1·dy",
        jnp.tanh,
        lambda x, dy: jnp.maximum(dy, 0) * (1 - jnp.tanh(x) ** 2),
        (X,),
    ),
    "a size that holds at other sizes": (
        "scale",
        "1/7: x.shape[0]",
        lambda x, w: x @ w,
        lambda x, w, dy: (dy @ w.T, x.T @ dy / x.shape[0]),
        (normal(7, 7), normal(7, 7, seed=1)),
    ),
    "a formula for one size only": (
        "flip",
        "axis 0",
        three_taps,
        lambda x, k, dy: three_taps_gradient(x, k, dy, (2, 1, 0)),
        (SIGNAL, KERNEL),
    ),
    "inputs: a part of dy": (
        "ignores_cotangent",
        "first index of axis 1",
        lambda x: x * 2,
        lambda x, dy: 2 * jnp.broadcast_to(dy[:, :1], dy.shape),
        (X,),
    ),
    "inputs: a transposed argument, without a trace": (
        "transpose",
        "c is transposed",
        product,
        lambda a, c, dy: (np.asarray(dy) @ np.asarray(c), np.asarray(a).T @ np.asarray(dy)),
        (A, C),
    ),
    "slips: values exchanged everywhere": (
        "swapped",
        "exchange",
        lambda x, a, b: jnp.tanh(x @ a) @ b,
        lambda x, a, b, dy: ((dy @ a.T * (1 - jnp.tanh(x @ b) ** 2)) @ b.T, None, None),
        (normal(5, 5, seed=8), A, C),
    ),
    "slips: a function of a value in scope": (
        "missing_term",
        "by 1 - (",
        jax.nn.sigmoid,
        lambda x, dy: dy * jax.nn.sigmoid(x),
        (X,),
    ),
    "slips: a constant of the forward pass": (
        "mask",
        "mul",
        lambda x: x * MASK.astype(x.dtype),
        lambda x, dy: dy,
        (X,),
    ),
    "slips: sums that should be means": (
        "scale",
        "multiply all sums by 0.0909091",
        norm,
        lambda x, dy: (
            lambda r, h: r * (dy - dy.sum(-1, keepdims=True) - h * (dy * h).sum(-1, keepdims=True))
        )(1 / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5), norm(x)),
        (X,),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", FOUND)
def test_every_way_to_a_name(case):
    kind, words, forward, backward, args = FOUND[case]
    report = fn.verify(forward, backward, args)
    first = report.findings[0]
    assert first.kind == kind, str(report)
    assert words in str(report)


def test_a_gradient_that_the_forward_pass_promotes_is_no_mistake():
    gains = np.full(11, 2.0, np.float32)
    forward, x = lambda x: x * gains, X.astype(jnp.bfloat16)
    with jax.numpy_dtype_promotion("standard"):
        assert fn.verify(forward, lambda x, dy: dy * gains, (x,)).ok
        (finding,) = fn.verify(lambda x: x * 2, lambda x, dy: 2 * dy.astype(jnp.float32), (x,)).findings
    assert finding.kind == "dtype"


def test_a_dtype_that_the_forward_pass_refuses_is_not_the_formulas_fault():
    a = (A + 5 * jnp.eye(5, dtype=A.dtype)).astype(jnp.bfloat16)  # LAPACK has no bfloat16
    inverse = lambda a: jnp.linalg.inv(a)
    with jax.numpy_dtype_promotion("standard"):
        assert fn.verify(inverse, lambda a, dy: -inverse(a).T @ dy @ inverse(a).T, (a,)).ok


def test_numpy_indices_do_not_hide_the_dtype_of_the_user():
    places = np.arange(5)[:, None] + np.arange(3)  # 64 bits, which JAX remembers from the run in float64
    forward = lambda t: (t[places] ** 2).sum(1)
    backward = lambda t, dy: jnp.zeros_like(t).at[places].add(2 * t[places] * dy[:, None])
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
        assert fn.verify(forward, backward, (normal(7),)).ok


def test_a_product_with_a_sum_is_found_from_the_difference(monkeypatch):
    monkeypatch.setattr("funcnet.verifier.diagnosis.paths.family", lambda *args: iter(()))
    forward, backward = lambda x: x * x.sum(-1, keepdims=True), lambda x, dy: dy * x.sum(-1, keepdims=True)
    (finding,) = fn.verify(forward, backward, (X,)).findings
    assert finding.kind == "missing_term"
    assert finding.suggestion == "add 1 · sum(x · dy) over 1"


def test_the_verdict_stands_where_the_search_for_a_name_fails(monkeypatch):
    def broken(*_):
        raise ValueError("no such word")

    monkeypatch.setattr("funcnet.verifier.diagnosis.paths.family", broken)
    forward, backward, args, _ = WRONG["statistics_constant"]
    (finding,) = fn.verify(forward, backward, args).findings
    assert finding.kind == "unknown"
    assert "ValueError: no such word" in finding.message


@pytest.mark.parametrize(
    ("forward", "backward", "args"),
    [
        (softmax, softmax_gradient, (X,)),
        (norm, norm_gradient, (X,)),
        (convolved, lambda x, k, dy: (spread(dy, k[::-1]), convolved(x, dy)), (SIGNAL, KERNEL)),
        (gained, gained_gradient, GAINED),
        (lambda x: x, lambda x, dy: dy, (jnp.float32(2.0),)),
        (lambda x: jnp.zeros(3), lambda x, dy: jnp.zeros_like(x), (X,)),
    ],
)  # fmt: skip
def test_right_formulas_are_left_alone(forward, backward, args):
    for seed in range(2):
        report = fn.verify(forward, backward, args, seed=seed, shapes="auto")
        assert report.ok, str(report)
        assert not report.findings


def test_the_line_and_the_edit_are_told():
    def backward(x, w, dy):
        return dy @ w, x.T @ dy  # HERE

    (finding,) = fn.verify(product, backward, (A, C)).findings
    here = next(i for i, text in enumerate(linecache.getlines(__file__), 1) if text.endswith("# HERE\n"))
    assert finding.location.endswith(f"test_diagnosis.py:{here}")
    assert finding.suggestion == "transpose `w` in `dy @ w`"


def test_a_factor_is_named_from_the_sizes():
    (finding,) = fn.verify(affine, WRONG["scale"][1], (X, W, B)).findings
    assert "1/7: x.shape[0]" in finding.message
    assert "multiply it by 7" in finding.suggestion


@pytest.mark.slow
def test_only_the_diagonal_of_the_jacobian():
    (finding,) = fn.verify(softmax, lambda x, dy: softmax(x) * (1 - softmax(x)) * dy, (X,)).findings
    assert finding.kind == "missing_term"
    assert "only the diagonal of the Jacobian" in finding.message


def test_a_wrong_row_is_told():
    def border(x, dy):
        return dy.at[0].set(0.0).at[-1].multiply(2.0)

    (finding,) = fn.verify(lambda x: x * 1, border, (normal(9, 4),)).findings
    assert (finding.kind, finding.also) == ("border", "scale")
    assert finding.where == "indices 0, 8 of axis 0"


# ---- what is no mistake -----------------------------------------------------------------------------------


def test_another_subgradient_is_a_convention():
    x = jnp.array([0.0, 1.0, -1.0, 2.0, 0.0])
    report = fn.verify(lambda x: jnp.maximum(x, 0), lambda x, dy: jnp.where(x > 0, dy, 0), (x,))
    assert report.ok
    assert [f.kind for f in report.findings] == ["convention"]
    outside = lambda x, dy: jnp.where(x > 0, dy, jnp.where(x == 0, 5 * dy, 0))
    assert not fn.verify(lambda x: jnp.maximum(x, 0), outside, (x,)).ok


def test_a_function_that_is_a_rule_is_not_taken_at_its_word():
    @jax.custom_jvp
    def cube(x):
        return x**3

    cube.defjvp(lambda primals, tangents: (primals[0] ** 3, 2.0 * primals[0] ** 2 * tangents[0]))
    assert fn.verify(cube, lambda x, dy: 3 * x**2 * dy, (X,)).ok
    assert not fn.verify(cube, lambda x, dy: 2 * x**2 * dy, (X,)).ok


def test_a_function_with_a_rule_of_its_own():
    @jax.custom_vjp
    def half(x):
        return jnp.sin(x)

    half.defvjp(lambda x: (jnp.sin(x), x), lambda x, dy: (dy * jnp.cos(x) / 2,))
    for report in (fn.verify(half, (X,), reference=jnp.sin), fn.verify(half, (X,))):
        (finding,) = report.findings
        assert finding.kind == "scale"


def test_a_forward_pass_in_float32_is_judged_in_float64():
    narrow = lambda x: jnp.tanh(x.astype(jnp.float32))
    slope = lambda x: 1 - jnp.tanh(x.astype(jnp.float32)) ** 2
    right = fn.verify(narrow, lambda x, dy: (dy * slope(x)).astype(x.dtype), (X,))
    assert right.ok
    assert right.rows[0].tolerance < 1e-9
    wrong = lambda x, dy: (dy * slope(x) * jnp.float32(1.0001)).astype(x.dtype)
    assert not fn.verify(narrow, wrong, (X,)).ok


def test_a_residual_that_is_never_read_is_noted():
    def vjp(x):
        return jnp.sin(x), jax.tree_util.Partial(lambda c, s, dy: (dy * c,), jnp.cos(x), jnp.sin(x))

    wasteful = types.ModuleType("wasteful")
    wasteful.reference, wasteful.vjp = jnp.sin, vjp
    report = fn.verify(wasteful, (X,))
    assert report.ok
    assert [n for n in report.notes if "never reads" in n] == [
        "the pullback keeps a residual that it never reads: float64[7, 11]"
    ]
    assert not [n for n in fn.verify(fn.tanh, (X,)).notes if "never reads" in n]


def test_stopped_gradients_are_taken_as_meant():
    f = lambda x: x * jax.lax.stop_gradient(jnp.sin(x))
    assert fn.verify(f, lambda x, dy: dy * jnp.sin(x), (X,)).ok


# ---- what cannot be verified ------------------------------------------------------------------------------


def test_nan_in_the_arguments():
    with pytest.raises(ValueRangeError, match="x holds NaN"):
        fn.verify(affine, WRONG["sign"][1], (X.at[0, 0].set(jnp.nan), W, B))


def test_only_integers():
    with pytest.raises(DTypeError, match="no floating-point array"):
        fn.verify(lambda x: x, lambda x, dy: dy, (jnp.arange(3),))


def test_shapes_that_do_not_fit():
    with pytest.raises(ShapeError, match="the forward pass does not run on these arguments"):
        fn.verify(affine, WRONG["sign"][1], (X, X, B))


def test_a_formula_that_does_not_run():
    report = fn.verify(affine, lambda x, w, b, dy: (dy @ w, x.T @ dy, dy.sum(0)), (X, W, B))
    (finding,) = report.findings
    assert (finding.kind, report.ok) == ("shape", False)
    assert finding.message.startswith("the formula does not run: ")


def test_a_forward_pass_that_is_not_deterministic():
    rng = np.random.default_rng(0)
    report = fn.verify(lambda x: x * rng.random(), lambda x, dy: dy, (X,))
    assert "nondeterministic" in {f.kind for f in report.findings}


def test_shapes_is_none_or_auto():
    with pytest.raises(ValueRangeError, match="shapes is 'all'"):
        fn.verify(affine, WRONG["sign"][1], (X, W, B), shapes="all")


def test_a_formula_in_plain_numpy_is_run_as_it_is():
    def backward(x, dy):
        return np.asarray(dy) * (1 - np.tanh(np.asarray(x)) ** 2)

    report = fn.verify(jnp.tanh, backward, (X,))
    assert report.ok
    assert any("plain Python" in note for note in report.notes)


# ---- reports ----------------------------------------------------------------------------------------------


def test_the_report_as_json():
    report = fn.verify(affine, WRONG["missing_batch_sum"][1], (X, W, B))
    data = json.loads(report.to_json())
    assert data["ok"] is False
    assert [row["argument"] for row in data["rows"]] == ["x", "w", "b"]
    assert data["rows"][2]["error"] is None, "infinite"
    assert data["findings"][0]["kind"] == "missing_batch_sum"


def test_a_kind_outside_the_set_is_refused():
    with pytest.raises(ValueError, match="no kind 'oops'"):
        Finding("x", "oops", "")


def test_assert_gradients():
    assert assert_gradients(jnp.tanh, lambda x, dy: dy * (1 - jnp.tanh(x) ** 2), (X,)).ok
    with pytest.raises(FormulaError, match="sign: this is the negative"):
        assert_gradients(jnp.tanh, lambda x, dy: -dy * (1 - jnp.tanh(x) ** 2), (X,))


def test_no_budget_gives_the_verdict_all_the_same():
    report = fn.verify(product, WRONG["transpose"][1], (A, C), budget=0.0)
    assert not report.ok
    assert report.findings[0].argument == "a"
