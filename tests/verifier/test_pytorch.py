"""Gradients of PyTorch: right ones pass, wrong ones are found, without a word of JAX."""

import subprocess
import sys

import numpy as np
import pytest

import funcnet as fn
from funcnet.errors import DTypeError
from tests.budget import few

torch = pytest.importorskip("torch")
DTYPES = ("float64", "float32", "bfloat16")


def tensor(*shape, seed=0, dtype="float32"):
    values = np.random.default_rng(seed).standard_normal(shape)
    return torch.from_numpy(values).to(getattr(torch, dtype))


def definition(x, w, b, times):
    return torch.tanh(x @ w + b) * times


def right(ctx, x, w, y, dy):
    g = dy * (1 - y * y) * ctx.times
    return g @ w.t(), x.t() @ g, g.sum(0), None


def dense(backward=right, forward=definition, only=None):
    """A `torch.autograd.Function`; only for tensors of one dtype if given."""

    class Dense(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, w, b, times):
            if only is not None and x.dtype != only:
                raise RuntimeError("expected scalar type Float but found Double")
            ctx.save_for_backward(x, w, torch.tanh(x @ w + b))
            ctx.times = times
            return forward(x, w, b, times)

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, dy):
            return backward(ctx, *ctx.saved_tensors, dy)

    return Dense


def args(dtype="float32"):
    each = (tensor(5, 3, dtype=dtype), tensor(3, 4, seed=1, dtype=dtype), tensor(4, seed=2, dtype=dtype))
    return (*each, 2)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reference", [definition, None])
def test_a_right_function_passes(dtype, reference):
    report = fn.verify_torch(dense(), args(dtype), reference=reference)
    assert report.ok, report
    assert [row.argument for row in report.rows] == ["x", "w", "b"]


def changed(edit):
    return lambda ctx, x, w, y, dy: edit(*right(ctx, x, w, y, dy), dy)


WRONG = {
    "sign": (changed(lambda dx, dw, db, _, dy: (-dx, dw, db, None)), "x"),
    "scale": (changed(lambda dx, dw, db, _, dy: (dx, 1.01 * dw, db, None)), "w"),
    "zero": (changed(lambda dx, dw, db, _, dy: (dx, dw, None, None)), "b"),
    "ignores_cotangent": (lambda ctx, x, w, y, dy: right(ctx, x, w, y, torch.ones_like(dy)), "x"),
}


@pytest.mark.parametrize("kind", few(WRONG, 1))
@pytest.mark.parametrize("reference", [definition, None])
def test_a_wrong_function_is_named(kind, reference):
    backward, argument = WRONG[kind]
    report = fn.verify_torch(dense(backward), args(), reference=reference, budget=0.5)
    assert kind in {finding.kind for finding in report.findings if finding.argument == argument}


@pytest.mark.slow
@pytest.mark.parametrize("reference", [definition, None])
def test_what_runs_in_float32_only_is_judged_by_its_rounding(reference):
    assert fn.verify_torch(dense(only=torch.float32), args(), reference=reference).ok
    off = dense(changed(lambda dx, dw, db, _, dy: (1.001 * dx, dw, db, None)), only=torch.float32)
    report = fn.verify_torch(off, args(), reference=reference, budget=0.0)
    assert [row.argument for row in report.rows if not row.ok] == ["x"]


def test_the_forward_pass_gives_the_values_of_the_definition():
    report = fn.verify_torch(dense(forward=lambda *a: definition(*a) + 1), args(), reference=definition)
    assert [finding.kind for finding in report.wrong] == ["value"]


def in_place(ctx, x, w, y, dy):
    return right(ctx, x, w, y, dy.mul_(2) / 2)


def saved_in_place(ctx, x, w, y, dy):
    grads = right(ctx, x, w, y, dy)
    w.data.mul_(2)
    return grads


def only_if_all(ctx, x, w, y, dy):
    dx, dw, db, _ = right(ctx, x, w, y, dy)
    return dx, dw, db if ctx.needs_input_grad[0] else 2 * db, None


def as_if_contiguous(ctx, x, w, y, dy):
    return right(ctx, x, w, y, torch.as_strided(dy, dy.shape, (dy.shape[1], 1)))


LAWS = {
    in_place: "value",
    saved_in_place: "nondeterministic",
    only_if_all: "layout",
    as_if_contiguous: "layout",
}


@pytest.mark.parametrize("backward", LAWS, ids=lambda f: f.__name__)
def test_what_only_pytorch_can_do_wrong_is_found(backward):
    report = fn.verify_torch(dense(backward), args(), reference=definition, budget=0.0)
    assert LAWS[backward] in {finding.kind for finding in report.wrong}


def test_several_results_one_without_gradient():
    class Peak(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            values, at = x.max(-1)
            ctx.save_for_backward(x, at)
            ctx.mark_non_differentiable(at)
            return values, at, x * x

        @staticmethod
        def backward(ctx, dv, _, ds):
            x, at = ctx.saved_tensors
            dx = 2 * x * ds
            return dx.scatter_add(-1, at[..., None], dv[..., None])

    assert fn.verify_torch(Peak, (tensor(4, 5),)).ok
    assert fn.verify_torch(Peak, (tensor(4, 5),), reference=lambda x: (*x.max(-1), x * x)).ok


def backward(x, w, b, times, dy):
    g = dy * (1 - torch.tanh(x @ w + b) ** 2) * times
    return g @ w.t(), x.t() @ g, g.sum(0), None


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_pair_of_functions(dtype):
    report = fn.verify_torch(definition, backward, args(dtype), shapes="auto")
    assert report.ok, report
    assert "also at other sizes: primes, square" in report.table()


def test_casts_inside_hide_no_mistake():
    narrow = lambda x, w, b, times, dy: (dy.bfloat16() @ w.bfloat16().t()).to(x.dtype)
    product = lambda x, w, b, times: x @ w
    formula = lambda scale: (
        lambda x, w, b, times, dy: (
            scale * narrow(x, w, b, times, dy),
            x.t() @ dy,
            None,
            None,
        )
    )
    assert fn.verify_torch(product, formula(1.0), args(), budget=0.0).rows[0].error < 1e-12
    assert fn.verify_torch(product, formula(1.001), args(), budget=0.0).wrong[0].kind == "scale"


def test_the_gradient_of_a_kink():
    values = torch.tensor([-1.0, 0.0, 2.0])
    assert fn.verify_torch(torch.relu, lambda x, dy: dy * (x >= 0), (values,)).ok
    assert not fn.verify_torch(torch.relu, lambda x, dy: 1.5 * dy * (x >= 0), (values,), budget=0.0).ok


def waves(of_unused):
    """(sin, cos), whose backward pass may get None for the gradient of a result that is not used."""

    class Waves(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.set_materialize_grads(False)
            ctx.save_for_backward(x)
            return x.sin(), x.cos()

        @staticmethod
        def backward(ctx, ds, dc):
            (x,) = ctx.saved_tensors
            ds, dc = (of_unused if d is None else d for d in (ds, dc))
            return ds * x.cos() - dc * x.sin()

    return Waves


@pytest.mark.parametrize(("of_unused", "kinds"), [(0.0, []), (1.0, ["layout"]), (None, ["structure"])])
def test_each_result_alone_is_used(of_unused, kinds):
    by_autograd = lambda x: (x.sin(), x.cos())
    report = fn.verify_torch(waves(of_unused), (tensor(3, 4),), reference=by_autograd, budget=0.0)
    assert [finding.kind for finding in report.wrong] == kinds


def test_what_has_no_floats_is_refused():
    with pytest.raises(DTypeError, match="no tensor of floats"):
        fn.verify_torch(dense(), (torch.arange(3),))


def test_the_error_without_pytorch_names_the_extra():
    code = "import sys; sys.modules['torch'] = None; import funcnet as fn; fn.verify_torch(None, ())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "pip install 'funcnet[torch]'" in done.stderr
