import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from funcnet.errors import DTypeError, ShapeError, ValueRangeError
from funcnet.ops.loss import ctc
from tests.errors import golden

INF = math.inf
RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.standard_normal((3, 11, 5)), jnp.float32)
LABELS = jnp.asarray([[1, 1, 2, 4], [3, 4, 3, 0], [2, 9, 9, 9]])
SIZES = {"lengths": jnp.asarray([11, 8, 5]), "label_lengths": jnp.asarray([4, 3, 1])}


def both(x, labels=LABELS, **options):
    """The losses and the gradient of their sum, in one program."""
    traced = {name: v for name, v in options.items() if v is not None and name != "blank"}

    def run(x, labels, traced):
        y, pull = jax.vjp(lambda x: ctc.apply(x, labels, **{**options, **traced}), x)
        return y, pull(jnp.ones_like(y))[0]

    return jax.jit(run)(x, labels, traced)


def test_one_label_by_hand():
    x = jnp.log(jnp.asarray([[0.5, 0.2, 0.3], [0.6, 0.1, 0.3]]))
    y, dx = both(x, jnp.asarray([2]))
    p = 0.5 * 0.3 + 0.3 * 0.6 + 0.3 * 0.3  # − 2, 2 −, 2 2
    np.testing.assert_allclose(y, -math.log(p), rtol=1e-6)
    at_first = np.array([0.5 * 0.3, 0, 0.3 * 0.6 + 0.3 * 0.3]) / p
    np.testing.assert_allclose(dx[0], np.array([0.5, 0.2, 0.3]) - at_first, rtol=1e-5)


def test_equals_torch():
    torch = pytest.importorskip("torch")
    y, dx = both(X, **SIZES)
    x = torch.tensor(np.array(X), requires_grad=True)
    sizes = [torch.tensor(np.array(SIZES[name])) for name in ("lengths", "label_lengths")]
    log_p = torch.log_softmax(x, -1).transpose(0, 1)
    theirs = torch.nn.functional.ctc_loss(log_p, torch.tensor(np.array(LABELS)), *sizes, reduction="none")
    theirs.sum().backward()
    np.testing.assert_allclose(y, theirs.detach(), rtol=1e-5)
    np.testing.assert_allclose(dx, x.grad, atol=2e-6)


def test_equals_optax():
    sizes = {name: np.array(v)[:, None] for name, v in SIZES.items()}
    padding = [
        (np.arange(n) >= sizes[name]).astype(np.float32) for name, n in zip(sizes, (11, 4), strict=True)
    ]
    last, labels = np.roll(X, -1, -1), (np.array(LABELS) - 1) % 5  # the blank at the end
    y, dx = both(last, labels, blank=4, **SIZES)

    @jax.jit
    def theirs(x, labels):
        of = lambda x: optax.ctc_loss(x, padding[0], labels, padding[1], blank_id=4)
        y, pull = jax.vjp(of, x)
        return y, pull(jnp.ones_like(y))[0]

    with jax.numpy_dtype_promotion("standard"):
        want = theirs(last, np.where(padding[1] == 0, labels, 4))
    np.testing.assert_allclose(y, want[0], rtol=1e-5)
    np.testing.assert_allclose(dx, want[1], atol=2e-6)
    np.testing.assert_allclose(y, both(X, **SIZES)[0], rtol=1e-5)


def test_what_cannot_be_aligned_is_infinite_and_moves_nothing():
    labels = jnp.asarray([[1, 1], [1, 2], [2, 1]])
    x, lengths = X[:, :2], jnp.asarray([2, 2, 1])
    y, dx = both(x, labels, lengths=lengths)
    assert np.isinf(y).tolist() == [True, False, True] == (~ctc.feasible(labels, lengths)).tolist()
    assert (y > 0).all()
    assert np.any(np.asarray(dx), (1, 2)).tolist() == [False, True, False]
    y, dx = both(X[:1].at[:, :, 2].set(-INF), LABELS[:1])  # a label that no frame can be
    assert y.tolist() == [INF]
    assert not dx.any()


def test_feasible_counts_labels_and_repetitions():
    labels = jnp.asarray([[1, 1, 2, 2], [1, 2, 1, 2], [3, 3, 3, 3]])
    assert ctc.feasible(labels, jnp.asarray([6, 4, 7])).all()
    assert not ctc.feasible(labels, jnp.asarray([5, 3, 6])).any()
    assert ctc.feasible(labels, jnp.asarray([3, 2, 0]), label_lengths=jnp.asarray([2, 2, 0])).all()


def test_of_no_labels_all_frames_are_blank():
    none = jnp.zeros((3, 0), jnp.int32)
    y, dx = both(X, none)
    p = np.exp(X) / np.exp(X).sum(-1, keepdims=True)
    np.testing.assert_allclose(y, -np.log(p[..., 0]).sum(-1), rtol=1e-5)
    np.testing.assert_allclose(dx, p - np.eye(5)[0], atol=1e-6)
    assert both(X[:, :0], none)[0].tolist() == [0, 0, 0]
    assert both(X[:, :0], LABELS[:, :1])[0].tolist() == [INF] * 3


def test_what_does_not_count_is_not_seen():
    y, dx = both(X, **SIZES)
    changed = X.at[1, 8:].set(jnp.nan).at[2, 5:].set(INF)
    again, dagain = both(changed, LABELS.at[1, 3].set(-1).at[2, 1:].set(7), **SIZES)
    np.testing.assert_array_equal(y, again)
    np.testing.assert_array_equal(dx, dagain)
    assert not dx[1, 8:].any()
    assert not dx[2, 5:].any()


@pytest.mark.parametrize("bad", [0, 5, -1])
def test_under_jit_an_example_with_a_bad_label_or_length_is_ignored(bad):
    y, dx = both(X, LABELS.at[0, 1].set(bad), **SIZES)
    assert y[0] == 0
    assert not dx[0].any()
    np.testing.assert_allclose(y[1:], ctc.apply(X, LABELS, **SIZES)[1:], rtol=1e-6)
    y, dx = both(X, **SIZES | {"lengths": jnp.asarray([12, -1, 5])})
    assert (y == 0).tolist() == [True, True, False]
    assert not dx[:2].any()


def test_blank_lengths_and_label_lengths_each_change_the_loss():
    y = ctc.apply(X, LABELS, **SIZES)
    for options in ({**SIZES, "lengths": None}, {**SIZES, "label_lengths": jnp.asarray([3, 2, 0])}):
        assert (ctc.apply(X, LABELS, **options) != y).any()
    assert (ctc.apply(X, LABELS[:, :1], blank=4) != ctc.apply(X, LABELS[:, :1])).all()


def test_a_long_float32_gradient_is_that_of_float64():
    x = jnp.asarray(RNG.standard_normal((2, 200, 7)), jnp.float32)
    labels = jnp.asarray(RNG.integers(1, 7, (2, 40)))
    grad = lambda f: jax.jit(jax.grad(lambda x: f(x, labels).sum()))
    np.testing.assert_allclose(grad(ctc.apply)(x), grad(ctc.reference)(x.astype("float64")), atol=2e-5)


def test_a_confident_loss_keeps_its_digits():
    x = 20 * np.eye(3, dtype=np.float32)[[0, 1, 1, 0, 2]]
    y, _ = both(x, jnp.asarray([1, 2]))
    want = jax.jit(ctc.reference)(x.astype(np.float64), jnp.asarray([1, 2]))
    assert 0 < want < 1e-7
    np.testing.assert_allclose(y, want, rtol=1e-4)


def test_equal_states_have_the_second_derivative_of_their_sum():
    hessian = lambda f: jax.hessian(lambda x: f(x, jnp.asarray([1])))
    got, want = jax.jit(lambda x: (hessian(ctc.apply)(x), hessian(ctc.reference)(x)))(jnp.zeros((3, 2)))
    np.testing.assert_allclose(got, want, atol=1e-12)


def test_keeps_two_numbers_of_each_label_and_frame():
    x, labels = jnp.zeros((2, 13, 5)), jnp.ones((2, 3), jnp.int32)
    kept = jax.tree.leaves(jax.eval_shape(lambda: ctc.vjp(x, labels))[1])
    assert sum(v.size for v in kept) == x.size + labels.size + 2 * 13 * (2 * 3 + 1) + 2 * 2


# ---- decoding ---------------------------------------------------------------------------------------------


def test_greedy_is_the_best_path_without_repetitions_and_blanks():
    path = jnp.asarray([[0, 2, 2, 0, 2, 1, 1], [3, 3, 1, 1, 3, 0, 0]])
    x = jax.nn.one_hot(path, 4)
    labels, number = ctc.greedy(x)
    assert labels.tolist() == [[2, 2, 1, -1, -1, -1, -1], [3, 1, 3, -1, -1, -1, -1]]
    assert number.tolist() == [3, 3]
    labels, number = ctc.greedy(x, lengths=jnp.asarray([4, 0]), blank=2)
    assert labels.tolist() == [[0, 0] + [-1] * 5, [-1] * 7]
    assert number.tolist() == [2, 0]


def labellings(x, blank):
    """Every labelling and its log-probability, the best first, by every path."""
    log_p, found = np.asarray(jax.nn.log_softmax(x)), {}
    for path in itertools.product(range(x.shape[1]), repeat=x.shape[0]):
        labels = tuple(k for k, _ in itertools.groupby(path) if k != blank)
        found.setdefault(labels, []).append(sum(log_p[i, k] for i, k in enumerate(path)))
    return sorted(((np.logaddexp.reduce(v), k) for k, v in found.items()), reverse=True)


@pytest.mark.parametrize("blank", [0, 2])
def test_a_beam_that_holds_all_is_exact(blank):
    x = jnp.asarray(RNG.standard_normal((4, 3)))
    labels, number, log_p = ctc.beam(x, width=20, blank=blank)
    want = labellings(x, blank)
    assert len(want) < 20
    got = [tuple(row[:n].tolist()) for row, n in zip(labels, number, strict=True)]
    assert got[: len(want)] == [k for _, k in want]
    np.testing.assert_allclose(log_p[: len(want)], [p for p, _ in want], rtol=1e-6)
    assert not number[len(want) :].any()
    assert (log_p[len(want) :] == -INF).all()


def test_a_narrow_beam_bounds_its_labels_from_below():
    @jax.jit
    def found(x, lengths):
        labels, number, log_p = ctc.beam(x, width=4, lengths=lengths)
        best, many = ctc.greedy(x, lengths=lengths)
        every, numbers = (
            jnp.concatenate([labels, best[:, None]], 1),
            jnp.concatenate([number, many[:, None]], 1),
        )
        loss = lambda labels, number: ctc.apply(x, labels, lengths=lengths, label_lengths=number)
        return labels, log_p, -jax.vmap(loss, 1, 1)(every, numbers)

    labels, log_p, exact = found(X.astype("float64"), SIZES["lengths"])
    assert (log_p <= exact[:, :4] + 1e-9).all()
    assert (log_p[:, 0] >= exact[:, 4] - 1.0).all()  # of the best path's labels
    assert len({tuple(row.tolist()) for row in labels[0]}) == 4


def test_one_beam_alone_is_the_same_in_a_batch():
    labels, number, log_p = ctc.beam(X, width=3, lengths=SIZES["lengths"])
    alone = ctc.beam(X[1, :8], width=3)
    np.testing.assert_array_equal(labels[1, :, :8], alone[0])
    np.testing.assert_array_equal(number[1], alone[1])
    np.testing.assert_allclose(log_p[1], alone[2], rtol=1e-6)


test_errors = golden(
    [
        (
            lambda: ctc.apply(X, LABELS[:, :3], blank=1),
            ValueRangeError,
            "ctc.apply: labels hold 9, outside [0, 5).\n"
            "  expected  0 ≤ labels < 5     (logits: float32[3, 11, 5])\n"
            f"  got       labels: {LABELS.dtype}[3, 3], 2 of 9 outside, from 9 to 9\n"
            "  hint      are some of them padding? label_lengths says how many count.",
        ),
        (
            lambda: ctc.apply(X, jnp.asarray([[1, 2, 0], [1, 0, 0], [3, 4, 2]], jnp.int32)),
            ValueRangeError,
            "ctc.apply: labels hold 0, which is the blank.\n"
            "  expected  labels: classes other than 0     (blank = 0)\n"
            "  got       labels: int32[3, 3], 3 of 9 the blank\n"
            "  hint      are some of them padding? label_lengths says how many count.",
        ),
        (
            lambda: ctc.apply(X, LABELS, lengths=jnp.asarray([11, 12, 5], jnp.int32)),
            ValueRangeError,
            "ctc.apply: lengths hold 12, outside [0, 11].\n"
            "  expected  0 ≤ lengths ≤ 11     (there are 11 frames)\n"
            "  got       lengths: int32[3], 1 of 3 outside, from 12 to 12",
        ),
        (
            lambda: ctc.apply(X, LABELS, blank=5),
            ValueRangeError,
            "ctc.apply: blank is 5, which is no class.\n"
            "  expected  0 ≤ blank < 5     (logits: float32[3, 11, 5])\n"
            "  got       blank = 5",
        ),
        (
            lambda: ctc.apply(X, LABELS[0]),
            ShapeError,
            "ctc.apply: labels do not have the shape that logits ask for.\n"
            "  expected  labels: int[3, l]     (logits: float32[3, 11, 5])\n"
            f"  got       labels: {LABELS.dtype}[4]",
        ),
        (
            lambda: ctc.apply(X, LABELS, lengths=[11, 8, 5]),
            DTypeError,
            "ctc.apply: lengths are not an array of integers.\n"
            "  expected  lengths: int[3]     (logits: float32[3, 11, 5])\n"
            "  got       lengths: a list\n"
            "  hint      wrap them: jnp.asarray(...).",
        ),
        (
            lambda: ctc.beam(X, width=0),
            ValueRangeError,
            "ctc.beam: width is 0, but at least 1 is needed.\n  expected  width ≥ 1\n  got       width = 0",
        ),
    ]
)
