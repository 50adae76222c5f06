"""The verifier, first form: right formulas pass, wrong ones do not, and the report says which."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import funcnet as fn
from funcnet.errors import DTypeError, StructureError, ValueRangeError
from funcnet.testing import assert_gradients
from funcnet.verifier.report import FormulaError
from tests.budget import few
from tests.cases import CASES


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape))


X, W, B = normal(7, 11), normal(11, 13, seed=1), normal(13, seed=2)
SQUARE = normal(5, 5, seed=3), normal(5, 5, seed=4)


def affine(x, w, b):
    return x @ w + b


RIGHT = lambda x, w, b, dy: (dy @ w.T, x.T @ dy, dy.sum(0))
WRONG = {
    "scaled": lambda x, w, b, dy: (1.0001 * dy @ w.T, x.T @ dy, dy.sum(0)),
    "sign": lambda x, w, b, dy: (dy @ w.T, -x.T @ dy, dy.sum(0)),
    "mean for sum": lambda x, w, b, dy: (dy @ w.T, x.T @ dy, dy.mean(0)),
    "no batch sum": lambda x, w, b, dy: (dy @ w.T, x.T @ dy, dy),
    "cotangent ignored": lambda x, w, b, dy: (jnp.ones_like(dy) @ w.T, x.T @ dy, dy.sum(0)),
    "None": lambda x, w, b, dy: (dy @ w.T, x.T @ dy, None),
    "nan": lambda x, w, b, dy: (dy @ w.T * jnp.nan, x.T @ dy, dy.sum(0)),
}
AT_FAULT = {
    "scaled": "x",
    "sign": "w",
    "mean for sum": "b",
    "no batch sum": "b",
    "cotangent ignored": "x",
    "None": "b",
    "nan": "x",
}


def test_a_right_formula_passes():
    report = fn.verify(affine, RIGHT, (X, W, B))
    assert report.ok
    assert [r.argument for r in report.rows] == ["x", "w", "b"]
    assert all(r.error < 1e-14 for r in report.rows)
    report.raise_if_wrong()


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_formula_is_found_and_its_argument_named(name):
    report = fn.verify(affine, WRONG[name], (X, W, B))
    assert not report.ok
    assert [r.argument for r in report.rows if not r.ok] == [AT_FAULT[name]]
    with pytest.raises(FormulaError, match="1 of 3 gradients WRONG"):
        report.raise_if_wrong()


def test_a_missing_transpose_of_a_square_matrix_is_found():
    assert not fn.verify(lambda x, w: x @ w, lambda x, w, dy: (dy @ w, x.T @ dy), SQUARE).ok


def test_a_small_gradient_cannot_hide_behind_a_large_one():
    f = lambda a, b: 1e3 * a + 1e-3 * b
    wrong = lambda a, b, dy: (1e3 * dy, 1.001e-3 * dy)
    assert [r.ok for r in fn.verify(f, wrong, (X, X)).rows] == [True, False]


def test_float32_arguments_are_verified_in_float64():
    args = jax.tree.map(lambda v: v.astype("float32"), (X, W, B))
    report = fn.verify(affine, RIGHT, args)
    assert report.ok
    assert not fn.verify(affine, lambda x, w, b, dy: (dy @ w.T * (1 + 1e-9), x.T @ dy, dy.sum(0)), args).ok


def test_works_with_x64_off():
    with jax.enable_x64(False):
        assert fn.verify(affine, RIGHT, (X, W, B)).ok
        assert jnp.ones(()).dtype == jnp.float32


def test_one_argument_may_give_one_array():
    assert fn.verify(lambda x: x**2, lambda x, dy: 2 * x * dy, (X,)).ok


def test_pytrees_integers_and_static_arguments():
    params, ids = {"w": W, "extra": [B]}, jnp.arange(7)
    f = lambda params, ids, *, scale: scale * params["w"][ids % 11] * params["extra"][0]

    def backward(params, ids, dy, *, scale):
        rows = scale * dy * params["extra"][0]
        dw = jnp.zeros_like(params["w"]).at[ids % 11].add(rows)
        return {"w": dw, "extra": [(scale * dy * params["w"][ids % 11]).sum(0)]}, None

    report = fn.verify(f, backward, (params, ids), static={"scale": 3.0})
    assert report.ok
    assert [r.argument for r in report.rows] == ['params["extra"][0]', 'params["w"]']


@pytest.mark.parametrize("case", few((c for i, c in enumerate(CASES) if i % 7 == 0), 9), ids=lambda c: c.id)
def test_operations_of_the_library_are_right(case):
    args, options = case.draw()
    assert fn.verify(case.module, args, static=options).ok


def test_the_table_reads_well():
    text = fn.verify(affine, WRONG["no batch sum"], (X, W, B)).table()
    assert re.sub(r"\de-13", "4e-13", text) == (
        "operation  gradient of  shapes           error    allowed\n"
        "affine     x            7×11, 11×13, 13  0.0e+00  4e-13    right\n"
        "affine     w            7×11, 11×13, 13  0.0e+00  4e-13    right\n"
        "affine     b            7×11, 11×13, 13  inf      0e+00    WRONG: missing_batch_sum\n"
        "b: missing_batch_sum: shape (7, 13), not (13,): not summed over the batch; append .sum(0)\n"
        "  fails at x = [[-1]], w = [[2]], b = [-1], dy = [[3]]: expected [3], got [[3]]\n"
        "note: drawn at random with seed 0\n"
        "1 of 3 gradients WRONG"
    )


@pytest.mark.parametrize(
    ("backward", "message"),
    [
        (lambda x, w, b, dy: (dy @ w.T, x.T @ dy), "does not return one gradient for each argument"),
        (lambda x, w, b, dy: dy, "does not return one gradient for each argument"),
        (lambda x, w, b, dy: (dy @ w.T, {"w": x.T @ dy}, dy.sum(0)), "another structure than its arguments"),
    ],
)
def test_a_wrong_structure(backward, message):
    report = fn.verify(affine, backward, (X, W, B))
    assert not report.ok
    (finding,) = report.findings
    assert finding.kind == "structure"
    assert message in finding.message


def test_args_must_be_a_tuple(unchecked):
    with pytest.raises(DTypeError) as error:
        fn.verify(lambda x: x, lambda x, dy: dy, X)
    assert error.value.hint == "one argument is (x,)."


# ---- verify_model -----------------------------------------------------------------------------------------


def model(params, batch, key):
    x, y = batch
    for layer in params["layers"]:
        x = fn.tanh.apply(fn.linear.apply(layer, x))
    return fn.mse.apply(x, y).mean()


@pytest.fixture
def setting():
    layers = [fn.linear.init(jax.random.key(i), 3, 3) for i in range(4)]
    return {"layers": layers}, (normal(5, 3), normal(5, 3, seed=9))


@pytest.mark.parametrize(
    "wrap", [lambda f: f, jax.jit, jax.checkpoint, jax.grad], ids=["plain", "jit", "remat", "grad"]
)
def test_a_models_operations_are_read_off_its_program(setting, wrap):
    report = fn.verify_model(wrap(model), *setting)
    assert report.ok
    assert [(r.operation, r.count) for r in report.rows] == [("linear", 4), ("tanh", 4), ("mse", 1)]
    assert "calls" in report.table()


def test_a_loss_without_a_key_and_what_is_no_loss(setting):
    rows = fn.verify_model(lambda params, batch: model(params, batch, None), *setting).rows
    assert [(r.operation, r.count) for r in rows] == [("linear", 4), ("tanh", 4), ("mse", 1)]
    with pytest.raises(StructureError) as error:
        fn.verify_model(lambda params: 0.0, *setting)
    assert error.value.expected == "loss(params, batch) or loss(params, batch, key)"
    with pytest.raises(DTypeError, match="verify_model: loss is not a function"):
        fn.verify_model(None, *setting)


def test_a_wrong_rule_in_a_model_is_found(setting, monkeypatch):
    right = fn.tanh.vjp

    def wrong(x):
        y, pullback = right(x)
        return y, jax.tree_util.Partial(_scaled, pullback)

    monkeypatch.setattr(fn.tanh, "vjp", wrong)
    report = fn.verify_model(model, *setting)
    assert [r.operation for r in report.rows if not r.ok] == ["tanh"]


def _scaled(pullback, dy):
    return tuple(1.0001 * g for g in pullback(dy))


def test_model_state_and_keys():
    params, state = fn.batch_norm.init(jax.random.key(0), 3)

    def loss(params, state, x, key):
        y, state = fn.batch_norm.apply(params, state, x, train=True)
        return fn.dropout.apply(y, rate=0.5, key=key).sum(), (state, {})

    report = fn.verify_model(loss, params, normal(5, 3), key=jax.random.key(1), model_state=state)
    assert report.ok
    assert [r.operation for r in report.rows] == ["batch_norm", "dropout"]


@pytest.mark.parametrize(
    ("path", "wrong"),
    [
        ("forward", {"forward": None}),
        ("forward", {"forward": "x @ w"}),
        ("backward", {"backward": (X, W, B)}),
        ("args", {"args": X}),
        ("args", {"args": None}),
        ("args[1]", {"args": (X, np.array(["w"]), B)}),
        ("args[1]['w']", {"args": (X, {"w": np.array([None])}, B)}),
        ("args[0]", {"args": (np.float32, W, B)}),
        ("reference", {"reference": 3}),
        ("static", {"static": "axis"}),
        ("static", {"static": [("axis", 1)]}),
        ("shapes", {"shapes": "all"}),
        ("shapes", {"shapes": np.ones(3)}),
        ("budget", {"budget": None}),
        ("budget", {"budget": float("nan")}),
        ("budget", {"budget": -1}),
        ("seed", {"seed": None}),
        ("seed", {"seed": 1.5}),
        ("seed", {"seed": -1}),
        ("order", {"order": 3}),
    ],
)
@pytest.mark.parametrize("call", [fn.verify, assert_gradients])
def test_slips_in_a_call(call, path, wrong, unchecked):
    given = {"forward": affine, "backward": RIGHT, "args": (X, W, B)} | wrong
    with pytest.raises((DTypeError, ValueRangeError), match=r"^verify: ") as raised:
        call(given.pop("forward"), given.pop("backward"), given.pop("args"), **given)
    assert raised.value.path == path


def test_a_key_is_no_gradient():
    report = fn.verify(affine, lambda x, w, b, dy: (dy @ w.T, x.T @ dy, jax.random.key(0)), (X, W, B))
    assert [finding.kind for finding in report.findings] == ["structure"]
