import jax
import jax.numpy as jnp
import numpy as np
import pytest

import funcnet as fn
from funcnet.errors import ShapeError, StructureError
from funcnet.hub import recurrent
from tests.errors import golden

RNG = np.random.default_rng(0)
X = RNG.standard_normal((2, 5, 3)).astype(np.float32)
M = 4


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def drawn(cell, library):
    """Weights as the library has them, of 3 features and a state of 4."""
    k = {"lstm": 4, "gru": 3, "rnn": 1}[cell] * M
    shapes = {
        "torch": {"weight_ih": (k, 3), "weight_hh": (k, M), "bias_ih": (k,), "bias_hh": (k,)},
        "keras": {"kernel": (3, k), "recurrent_kernel": (M, k), "bias": (2, k) if cell == "gru" else (k,)},
        "onnx": {"W": (1, k, 3), "R": (1, k, M), "B": (1, 2 * k)},
        "haiku": {"w": (3 + M, k), "b": (k,)}
        if cell == "lstm"
        else {"w_i": (3, k), "w_h": (M, k), "b": (k,)},
    }
    return {name: RNG.standard_normal(shape).astype(np.float32) for name, shape in shapes[library].items()}


def steps(f, *states):
    """The outputs of f(x, *states) -> (y, *states), as a library's documentation writes its cell."""
    out = []
    for t in range(X.shape[1]):
        y, *states = f(X[:, t], *states)
        out.append(y)
    return np.stack(out, 1)


def onnx_lstm(a):
    W, R, B = a["W"][0], a["R"][0], a["B"][0]

    def one(x, h, c):
        z = x @ W.T + h @ R.T + B[: 4 * M] + B[4 * M :]
        i, o, f, g = np.split(z, 4, -1)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        return (h := sigmoid(o) * np.tanh(c)), h, c

    return one, np.zeros((2, M)), np.zeros((2, M))


def keras_lstm(a):
    def one(x, h, c):
        i, f, g, o = np.split(x @ a["kernel"] + h @ a["recurrent_kernel"] + a["bias"], 4, -1)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        return (h := sigmoid(o) * np.tanh(c)), h, c

    return one, np.zeros((2, M)), np.zeros((2, M))


def haiku_lstm(a):
    def one(x, h, c):
        i, g, f, o = np.split(np.concatenate([x, h], -1) @ a["w"] + a["b"], 4, -1)
        c = sigmoid(f + 1) * c + sigmoid(i) * np.tanh(g)
        return (h := sigmoid(o) * np.tanh(c)), h, c

    return one, np.zeros((2, M)), np.zeros((2, M))


def keras_gru(a):
    def one(x, h):
        (xz, xr, xn), (hz, hr, hn) = (
            np.split(v, 3, -1)
            for v in (x @ a["kernel"] + a["bias"][0], h @ a["recurrent_kernel"] + a["bias"][1])
        )
        z, r = sigmoid(xz + hz), sigmoid(xr + hr)
        return (h := z * h + (1 - z) * np.tanh(xn + r * hn)), h

    return one, np.zeros((2, M))


def onnx_gru(a, after=True):
    W, R, (wb, rb) = a["W"][0], a["R"][0], np.split(a["B"][0], 2)

    def one(x, h):
        (xz, xr, xn), (hz, hr, hn) = (np.split(v, 3, -1) for v in (x @ W.T + wb, h @ R.T + rb))
        z, r = sigmoid(xz + hz), sigmoid(xr + hr)
        n = np.tanh(xn + (r * hn if after else (r * h) @ R[2 * M :].T + rb[2 * M :]))
        return (h := (1 - z) * n + z * h), h

    return one, np.zeros((2, M))


def haiku_gru(a):
    def one(x, h):
        w_z, w_a, b = a["w_h"][:, : 2 * M], a["w_h"][:, 2 * M :], a["b"]
        of_x = x @ a["w_i"]
        z, r = np.split(sigmoid(of_x[:, : 2 * M] + h @ w_z + b[: 2 * M]), 2, -1)
        n = np.tanh(of_x[:, 2 * M :] + (r * h) @ w_a + b[2 * M :])
        return (h := (1 - z) * h + z * n), h

    return one, np.zeros((2, M))


def rnn_of(w, u, b):
    return (lambda x, h: ((h := np.tanh(x @ w + h @ u + b)), h)), np.zeros((2, M))


WRITTEN = {
    ("lstm", "onnx", "after"): onnx_lstm,
    ("lstm", "keras", "after"): keras_lstm,
    ("lstm", "haiku", "after"): haiku_lstm,
    ("gru", "keras", "after"): keras_gru,
    ("gru", "onnx", "after"): onnx_gru,
    ("gru", "onnx", "before"): lambda a: onnx_gru(a, after=False),
    ("gru", "haiku", "before"): haiku_gru,
    ("rnn", "keras", "after"): lambda a: rnn_of(a["kernel"], a["recurrent_kernel"], a["bias"]),
    ("rnn", "onnx", "after"): lambda a: rnn_of(a["W"][0].T, a["R"][0].T, a["B"][0][:M] + a["B"][0][M:]),
}


def ours(cell, params, reset):
    options = {"reset": reset} if cell == "gru" else {}
    op = getattr(fn, cell)
    return jax.jit(lambda p: op.apply(p, jnp.asarray(X), **options)[0])(jax.tree.map(jnp.asarray, params))


@pytest.mark.parametrize(("cell", "library", "reset"), WRITTEN)
def test_the_function_is_that_of_the_library(cell, library, reset):
    """As its documentation writes it; and back, the function stays the same."""
    arrays = drawn(cell, library)
    params = recurrent.from_arrays(cell, library, arrays, reset=reset)
    want = steps(*WRITTEN[cell, library, reset](arrays))
    np.testing.assert_allclose(ours(cell, params, reset), want, atol=1e-5)
    again = recurrent.to_arrays(cell, library, params, reset=reset)
    assert {n: v.shape for n, v in again.items()} == {n: v.shape for n, v in arrays.items()}
    np.testing.assert_allclose(steps(*WRITTEN[cell, library, reset](again)), want, atol=1e-5)


@pytest.mark.parametrize(
    ("cell", "options"), [("lstm", {}), ("lstm", {"proj_size": 2}), ("gru", {}), ("rnn", {})]
)
@pytest.mark.filterwarnings("ignore:LSTM with projections")  # torch's, of which form it takes
def test_torch_itself(cell, options):
    torch = pytest.importorskip("torch")
    theirs = getattr(torch.nn, cell.upper())(3, M, batch_first=True, **options)
    arrays = {name.removesuffix("_l0"): v.numpy() for name, v in theirs.state_dict().items()}
    with torch.no_grad():
        want = theirs(torch.from_numpy(X))[0].numpy()
    params = recurrent.from_arrays(cell, "torch", arrays)
    np.testing.assert_allclose(ours(cell, params, "after"), want, atol=1e-5)
    back = recurrent.to_arrays(cell, "torch", params)
    theirs.load_state_dict({f"{name}_l0": torch.from_numpy(v.copy()) for name, v in back.items()})
    with torch.no_grad():
        np.testing.assert_allclose(theirs(torch.from_numpy(X))[0].numpy(), want, atol=1e-5)


@pytest.mark.parametrize(("cell", "library", "reset"), recurrent.LAYOUTS)
def test_there_and_back(cell, library, reset):
    """Params, of b and c both, come back as they were, but that without a second bias c is added to b."""
    params = {
        name: RNG.standard_normal(shape)
        for name, shape in (
            ("w", (3, len(recurrent.GATES[cell]) * M)),
            ("u", (M, len(recurrent.GATES[cell]) * M)),
            ("b", (len(recurrent.GATES[cell]) * M,)),
            *([("c", (M,))] if cell == "gru" else []),
        )
    }
    arrays = recurrent.to_arrays(cell, library, params, reset=reset)
    back = recurrent.from_arrays(cell, library, arrays, reset=reset)
    if recurrent.LAYOUTS[cell, library, reset].parts == 1 and "c" in params:
        params["b"][2 * M :] += params.pop("c")
    assert set(back) == set(params)
    for name, value in params.items():
        np.testing.assert_allclose(back[name], value, rtol=1e-12)
    bare = {"w": params["w"], "u": params["u"]}
    arrays = recurrent.to_arrays(cell, library, bare, reset=reset)
    assert set(recurrent.from_arrays(cell, library, arrays, reset=reset)) == {"w", "u"}


ERRORS = [
    (
        lambda: recurrent.from_arrays("lstm", "torch", {"weight_ih": np.ones((8, 3))}),
        StructureError,
        'hub.recurrent.from_arrays: arrays have no "weight_hh".\n'
        '  expected  "weight_ih", "weight_hh", "bias_ih", "bias_hh" (biases may be absent)\n'
        '  got       keys: "weight_ih"',
    ),
    (
        lambda: recurrent.from_arrays(
            "lstm", "torch", {"weight_ih": np.ones((8, 3)), "weight_hh": np.ones((2, 8))}
        ),
        ShapeError,
        "hub.recurrent.from_arrays: the arrays of torch do not hold 4 gates of 8.\n"
        "  expected  W of 32 columns, and U of 8 rows and 32 columns, once laid out as ours\n"
        "  got       W [3, 8], U [8, 2]",
    ),
    (
        lambda: recurrent.to_arrays(
            "lstm", "keras", {"w": np.ones((3, 8)), "u": np.ones((1, 8)), "r": np.ones((2, 1))}
        ),
        StructureError,
        "hub.recurrent.to_arrays: keras has no lstm with a projection.\n"
        '  expected  params without "r"\n'
        '  got       params["r"]: [2, 1]',
    ),
    (
        lambda: recurrent.from_arrays("gru", "haiku", {}),
        StructureError,
        "hub.recurrent.from_arrays: there is no 'gru' of 'haiku' with reset='after'.\n"
        "  expected  reset='before'\n"
        "  got       cell = 'gru', library = 'haiku', reset = 'after'\n"
        "  hint      another reset is another function of the same weights.",
    ),
    (
        lambda: recurrent.to_arrays("lstm", "mxnet", {}),
        StructureError,
        "hub.recurrent.to_arrays: there is no 'lstm' of 'mxnet'.\n"
        "  expected  gru, lstm, rnn of torch, keras or onnx, lstm and gru of haiku\n"
        "  got       cell = 'lstm', library = 'mxnet', reset = 'after'",
    ),
]
test_errors = golden(ERRORS)
