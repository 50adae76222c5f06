"""A second exam for `fn.verify`: gradient formulas of many fields, wrong and right, written blind.

Its author had not seen the verifier, its tests, nor the formulas that it was developed and scored on; only
its documentation. A wrong formula has one mistake, as people make them by hand; its docstring says which. A
right one is not what autodiff would write: another algebra, a closed form, NumPy, other roundings. Long
formulas have a keyword `slip`, which names the mistake that is made in them; without one they are right.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy import linalg, special, stats

Array = jax.Array
Grads = tuple[Any, ...]
EXACT = ("float64", "float32")
ALL = ("float64", "float32", "bfloat16")


class Draw:
    """Random arguments of a seed, in float64."""

    def __init__(self, seed: int):
        self.rng = np.random.default_rng(seed)

    def normal(self, *shape: int) -> np.ndarray:
        """Standard normal numbers."""
        return self.rng.standard_normal(shape)

    def uniform(self, *shape: int, low: float = 0.5, high: float = 1.5) -> np.ndarray:
        """Numbers away from 0."""
        return self.rng.uniform(low, high, shape)

    def spd(self, n: int) -> np.ndarray:
        """A symmetric positive definite matrix, far from singular."""
        a = self.normal(n, n)
        return a @ a.T / n + np.eye(n)

    def matrix(self, n: int) -> np.ndarray:
        """A matrix without symmetry, far from singular."""
        return self.normal(n, n) / np.sqrt(n) + 2 * np.eye(n)

    def lower(self, n: int) -> np.ndarray:
        """A Cholesky factor."""
        return np.linalg.cholesky(self.spd(n))

    def below(self, high: int, *shape: int) -> np.ndarray:
        """Integers; every one occurs if there is room."""
        count = int(np.prod(shape))
        return self.rng.permutation(np.arange(count) % high).reshape(shape).astype(np.int32)

    def bits(self, *shape: int) -> np.ndarray:
        """Booleans, two thirds of them true."""
        return self.below(3, *shape) > 0


class Case(NamedTuple):
    """A forward pass and a formula for its gradients; `kind` is None if the formula is right."""

    name: str
    forward: Callable[..., Any]
    backward: Callable[..., Any]
    draw: Callable[[Draw], tuple[Any, ...]]
    kind: str | None = None
    argument: str = ""
    also: str = ""
    dtypes: tuple[str, ...] = EXACT

    def args(self, dtype: str = "float64", seed: int = 0) -> tuple[Array, ...]:
        """The arguments: floats in `dtype`, complex numbers in its complex type, others as they are."""
        kinds = {"f": dtype, "c": {"float64": "complex128"}.get(dtype, "complex64")}
        arrays = [np.asarray(value) for value in self.draw(Draw(seed))]
        return tuple(jnp.asarray(each, kinds.get(each.dtype.kind, each.dtype)) for each in arrays)


WRONG: list[Case] = []
RIGHT: list[Case] = []


def wrong(forward: Any, draw: Any, kind: str, argument: str, also: str = "") -> Callable[[Any], Any]:
    """Enter a wrong formula."""

    def enter(backward: Any) -> Any:
        WRONG.append(Case(backward.__name__, forward, backward, draw, kind, argument, also))
        return backward

    return enter


def right(forward: Any, draw: Any, dtypes: tuple[str, ...] = EXACT) -> Callable[[Any], Any]:
    """Enter a right formula, and the dtypes in which it is to be judged."""

    def enter(backward: Any) -> Any:
        RIGHT.append(Case(backward.__name__, forward, backward, draw, dtypes=dtypes))
        return backward

    return enter


def slips(
    forward: Any, draw: Any, mistakes: Mapping[str, tuple[str, ...]], dtypes: tuple[str, ...] = EXACT
) -> Callable[[Any], Any]:
    """Enter a long formula: right, and wrong once for each {slip: (kind, argument, perhaps another kind)}."""

    def enter(backward: Any) -> Any:
        right(forward, draw, dtypes)(backward)
        for slip, (kind, argument, *also) in mistakes.items():
            name = f"{backward.__name__}_{slip}"
            formula = partial(backward, slip=slip)
            WRONG.append(Case(name, forward, formula, draw, kind, argument, "".join(also)))
        return backward

    return enter


# ---- graphs -----------------------------------------------------------------------------------------------


def graph_layer(a: Array, x: Array, w: Array) -> Array:
    return jnp.tanh(a @ x @ w)


GRAPH_LAYER = lambda d: (d.uniform(5, 5, low=0, high=0.6), d.normal(5, 3), d.normal(3, 4))


@wrong(graph_layer, GRAPH_LAYER, "transpose", "x")
def graph_layer_adjacency(a: Array, x: Array, w: Array, dy: Array) -> Grads:
    """Messages go back along the edges' own direction: the adjacency is not transposed."""
    g = dy * (1 - jnp.tanh(a @ x @ w) ** 2)
    return g @ (x @ w).T, a @ (g @ w.T), (a @ x).T @ g


@right(graph_layer, GRAPH_LAYER, ALL)
def graph_layer_sech(a: Array, x: Array, w: Array, dy: Array) -> Grads:
    mixed = x @ w
    g = dy / jnp.cosh(a @ mixed) ** 2
    back = a.T @ g
    return jnp.einsum("nf,mf->nm", g, mixed), jnp.einsum("nf,df->nd", back, w), x.T @ back


def edge_energy(x: Array, weight: Array, source: Array, target: Array) -> Array:
    """The quadratic form of a graph's Laplacian, for each feature."""
    return 0.5 * (weight[:, None] * (x[source] - x[target]) ** 2).sum(0)


EDGES = lambda d: (d.normal(5, 3), d.uniform(9), d.below(5, 9), d.below(4, 9))


@wrong(edge_energy, EDGES, "missing_term", "x")
def edge_energy_one_end(x: Array, weight: Array, source: Array, target: Array, dy: Array) -> Grads:
    """Only the first end of each edge is pulled."""
    apart = x[source] - x[target]
    pull = weight[:, None] * apart * dy
    return jnp.zeros_like(x).at[source].add(pull), 0.5 * apart**2 @ dy, None, None


@wrong(edge_energy, EDGES, "missing_term", "x")
def edge_energy_set(x: Array, weight: Array, source: Array, target: Array, dy: Array) -> Grads:
    """An edge overwrites what another one added to the same node: set in place of add."""
    apart = x[source] - x[target]
    pull = weight[:, None] * apart * dy
    dx = jnp.zeros_like(x).at[source].set(pull) - jnp.zeros_like(x).at[target].add(pull)
    return dx, 0.5 * apart**2 @ dy, None, None


@wrong(edge_energy, EDGES, "sign", "x")
def edge_energy_sign(x: Array, weight: Array, source: Array, target: Array, dy: Array) -> Grads:
    """The ends are taken the wrong way round."""
    apart = x[target] - x[source]
    pull = weight[:, None] * apart * dy
    dx = jnp.zeros_like(x).at[source].add(pull).at[target].add(-pull)
    return dx, 0.5 * apart**2 @ dy, None, None


@right(edge_energy, EDGES, ALL)
def edge_energy_laplacian(x: Array, weight: Array, source: Array, target: Array, dy: Array) -> Grads:
    ends = jax.nn.one_hot(source, x.shape[0], dtype=x.dtype) - jax.nn.one_hot(
        target, x.shape[0], dtype=x.dtype
    )
    apart = ends @ x
    return ends.T @ (weight[:, None] * apart) * dy, (apart**2 * dy).sum(1) / 2, None, None


def page_rank(links: Array, rank: Array) -> Array:
    """A step of PageRank, with damping."""
    outgoing = links / links.sum(1, keepdims=True)
    return 0.85 * rank @ outgoing + 0.15 / rank.shape[0]


LINKS = lambda d: (d.uniform(5, 5), d.uniform(5))


@wrong(page_rank, LINKS, "statistics_constant", "links")
def page_rank_degree(links: Array, rank: Array, dy: Array) -> Grads:
    """The number of outgoing links is held constant."""
    degree = links.sum(1, keepdims=True)
    return 0.85 * rank[:, None] * dy[None] / degree, 0.85 * (links / degree) @ dy


@wrong(page_rank, LINKS, "scale", "rank")
def page_rank_damping(links: Array, rank: Array, dy: Array) -> Grads:
    """The damping is forgotten."""
    degree = links.sum(1, keepdims=True)
    chance = links / degree
    dchance = 0.85 * rank[:, None] * dy[None]
    return (dchance - (dchance * chance).sum(1, keepdims=True)) / degree, chance @ dy


@right(page_rank, LINKS)
def page_rank_closed(links: Array, rank: Array, dy: Array) -> Grads:
    degree = links.sum(1)
    back = links @ dy / degree
    return 0.85 * (rank / degree)[:, None] * (dy[None] - back[:, None]), 0.85 * back


def messages(x: Array, w: Array, source: Array, target: Array) -> Array:
    return jax.ops.segment_sum(jax.nn.relu(x[source] @ w), target, x.shape[0])


MESSAGES = lambda d: (d.normal(5, 3), d.normal(3, 4), d.below(5, 11), d.below(4, 11))


@wrong(messages, MESSAGES, "swapped", "x", "wrong_residual")
def messages_ends(x: Array, w: Array, source: Array, target: Array, dy: Array) -> Grads:
    """The cotangent of a message is read at its source."""
    g = dy[source] * (x[source] @ w > 0)
    return jnp.zeros_like(x).at[source].add(g @ w.T), x[source].T @ g, None, None


@wrong(messages, MESSAGES, "mask", "x")
def messages_relu(x: Array, w: Array, source: Array, target: Array, dy: Array) -> Grads:
    """The ramp's derivative is left out."""
    g = dy[target]
    return jnp.zeros_like(x).at[source].add(g @ w.T), x[source].T @ g, None, None


def degree_layer(a: Array, x: Array) -> Array:
    """Neighbours with a graph convolution's symmetric normalisation."""
    root = 1 / jnp.sqrt(a.sum(1))
    return root[:, None] * a * root[None, :] @ x


DEGREE = lambda d: (d.uniform(5, 5), d.normal(5, 3))


@slips(
    degree_layer,
    DEGREE,
    {
        "constant": ("statistics_constant", "a"),  # the degrees are held constant
        "one": ("missing_term", "a"),  # only the degrees of the rows count
        "power": ("wrong_residual", "a"),  # root in place of its cube
    },
)
def degree_layer_back(a: Array, x: Array, dy: Array, slip: str = "") -> Grads:
    degree = a.sum(1)
    root = degree**-0.5
    joint = dy @ x.T
    da = root[:, None] * root[None, :] * joint
    weighted = joint * a
    droot = (weighted * root[None, :]).sum(1)
    if slip != "one":
        droot = droot + (weighted * root[:, None]).sum(0)
    ddegree = -0.5 * droot * (root if slip == "power" else root**3)
    if slip != "constant":
        da = da + ddegree[:, None]
    scaled = root[:, None] * a * root[None, :]
    return da, scaled.T @ dy


def edge_attention(score: Array, value: Array, target: Array) -> Array:
    """A softmax over the edges that end in the same node, and the sum of their values."""
    top = jax.ops.segment_max(score, target, 4)
    e = jnp.exp(score - lax.stop_gradient(top)[target])
    p = e / jax.ops.segment_sum(e, target, 4)[target]
    return jax.ops.segment_sum(p[:, None] * value, target, 4)


EDGE_ATTENTION = lambda d: (d.normal(11), d.normal(11, 3), d.below(4, 11))


@slips(
    edge_attention,
    EDGE_ATTENTION,
    {
        "plain": ("statistics_constant", "score", "missing_term"),  # the sum of the softmax is held constant
        "whole": ("wrong_axis", "score"),  # the mean is over all edges, not over those of a node
        "weights": ("missing_term", "value"),  # the values' cotangents lack the weights
    },
    ALL,
)
def edge_attention_back(score: Array, value: Array, target: Array, dy: Array, slip: str = "") -> Grads:
    ones = jax.nn.one_hot(target, 4, dtype=score.dtype)
    e = jnp.exp(score - score.max())
    p = e / (ones @ (ones.T @ e))
    g = ones @ dy
    dp = (g * value).sum(1)
    if slip == "plain":
        dscore = p * dp
    elif slip == "whole":
        dscore = p * (dp - (p * dp).sum())
    else:
        dscore = p * (dp - ones @ (ones.T @ (p * dp)))
    dvalue = g if slip == "weights" else p[:, None] * g
    return dscore, dvalue, None


def neighbour_mean(x: Array, target: Array) -> Array:
    ones = jnp.ones(x.shape[0], x.dtype)
    return jax.ops.segment_sum(x, target, 4) / jax.ops.segment_sum(ones, target, 4)[:, None]


NEIGHBOURS = lambda d: (d.normal(9, 3), d.below(4, 9))


@wrong(neighbour_mean, NEIGHBOURS, "missing_term", "x")
def neighbour_mean_count(x: Array, target: Array, dy: Array) -> Grads:
    """The number of neighbours does not divide."""
    return dy[target], None


@right(neighbour_mean, NEIGHBOURS)
def neighbour_mean_numpy(x: Array, target: Array, dy: Array) -> Grads:
    counts = np.bincount(np.asarray(target), minlength=4)
    return jnp.asarray((np.asarray(dy) / counts[:, None])[np.asarray(target)].astype(x.dtype)), None


# ---- recurrences ------------------------------------------------------------------------------------------


def decay(a: Array, b: Array, x: Array) -> Array:
    """h_t = a h_{t-1} + b x_t, for every channel."""

    def step(h: Any, now: Any) -> Any:
        h = a * h + b * now
        return h, h

    return lax.scan(step, jnp.zeros_like(x[0]), x)[1]


DECAY = lambda d: (d.uniform(3, low=0.3, high=0.9), d.normal(3), d.normal(7, 3))


@slips(
    decay,
    DECAY,
    {
        "time": ("missing_term", "a"),  # nothing flows back through time
        "late": ("wrong_residual", "a"),  # h_t in place of h_{t-1}
        "forward": ("flip", "x"),  # scanned from the first step to the last
        "last": ("missing_term", "b"),  # only the last step counts for b
        "input": ("missing_term", "x"),  # the factor b is left out
        "carry": ("missing_term", "a"),  # the carry is not multiplied by a
    },
    ALL,
)
def decay_back(a: Array, b: Array, x: Array, dy: Array, slip: str = "") -> Grads:
    h = decay(a, b, x)
    before = jnp.concatenate([jnp.zeros_like(h[:1]), h[:-1]])

    def step(carry: Any, now: Any) -> Any:
        dh, da, db = carry
        g, x_t, h_t, h_before = now
        g = g + dh
        da = da + g * (h_t if slip == "late" else h_before)
        db = db + g * x_t
        dx = g if slip == "input" else g * b
        through = g if slip == "carry" else g * a
        if slip == "time":
            through = 0 * through
        return (through, da, db), dx

    zero = jnp.zeros_like(a)
    reverse = slip != "forward"
    xs = (dy, x, h, before)
    (_, da, db), dx = lax.scan(step, (zero, zero, zero), xs, reverse=reverse)
    if slip == "last":
        db = dy[-1] * x[-1]
    return da, db, dx


@right(decay, DECAY)
def decay_kernel(a: Array, b: Array, x: Array, dy: Array) -> Grads:
    """As a product with a triangular matrix of powers."""
    n = x.shape[0]
    lag = jnp.arange(n)[:, None] - jnp.arange(n)[None]
    power = jnp.where(lag[..., None] >= 0, a ** jnp.maximum(lag, 0)[..., None], 0)
    slope = jnp.where(lag[..., None] > 0, lag[..., None] * a ** jnp.maximum(lag - 1, 0)[..., None], 0)
    g = jnp.einsum("tsc,tc->sc", power, dy)
    return jnp.einsum("tsc,tc,sc->c", slope, dy, x) * b, (g * x).sum(0), g * b


def rnn(x: Array, w: Array, u: Array, b: Array) -> Array:
    def step(h: Any, now: Any) -> Any:
        h = jnp.tanh(now @ w + h @ u + b)
        return h, h

    return lax.scan(step, jnp.zeros((x.shape[1], u.shape[0]), x.dtype), x)[1]


RNN = lambda d: (d.normal(6, 2, 3), d.normal(3, 4), 0.5 * d.normal(4, 4), d.normal(4))
RNN_SQUARE = lambda d: (d.normal(4, 4, 4), 0.5 * d.normal(4, 4), 0.5 * d.normal(4, 4), d.normal(4))
RNN_SLIPS = {
    "residual": ("wrong_residual", "u"),  # the state after the step in place of the one before
    "slope": ("missing_term", "u"),  # the carry lacks tanh's slope
    "batch": ("missing_batch_sum", "b"),  # the bias sees the first sample only
}


@slips(rnn, RNN, RNN_SLIPS)
def rnn_back(x: Array, w: Array, u: Array, b: Array, dy: Array, slip: str = "") -> Grads:
    h = rnn(x, w, u, b)
    before = jnp.concatenate([jnp.zeros_like(h[:1]), h[:-1]])

    def step(carry: Any, now: Any) -> Any:
        dh, dw, du, db = carry
        x_t, h_t, h_before, g = now
        total = g + dh
        dz = total * (1 - h_t**2)
        dw = dw + x_t.T @ dz
        du = du + (h_t if slip == "residual" else h_before).T @ dz
        db = db + (dz[0] if slip == "batch" else dz.sum(0))
        dh = (total if slip == "slope" else dz) @ u.T
        return (dh, dw, du, db), dz @ w.T

    start = (jnp.zeros_like(h[0]), jnp.zeros_like(w), jnp.zeros_like(u), jnp.zeros_like(b))
    (_, dw, du, db), dx = lax.scan(step, start, (x, h, before, dy), reverse=True)
    return dx, dw, du, db


@wrong(rnn, RNN_SQUARE, "transpose", "w")
def rnn_square(x: Array, w: Array, u: Array, b: Array, dy: Array) -> Grads:
    """The recurrent matrix is not transposed, and all sizes are equal."""
    h = rnn(x, w, u, b)
    before = jnp.concatenate([jnp.zeros_like(h[:1]), h[:-1]])

    def step(dh: Any, now: Any) -> Any:
        h_t, g = now
        dz = (g + dh) * (1 - h_t**2)
        return dz @ u, dz

    _, dz = lax.scan(step, jnp.zeros_like(h[0]), (h, dy), reverse=True)
    dw = jnp.einsum("tbi,tbj->ij", x, dz)
    du = jnp.einsum("tbi,tbj->ij", before, dz)
    return dz @ w.T, dw, du, dz.sum((0, 1))


def lstm(x: Array, w: Array, u: Array, b: Array) -> Array:
    size = u.shape[0]

    def step(carry: Any, now: Any) -> Any:
        h, c = carry
        i, f, g, o = jnp.split(now @ w + h @ u + b, 4, axis=-1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return (h, c), h

    zero = jnp.zeros((x.shape[1], size), x.dtype)
    return lax.scan(step, (zero, zero), x)[1]


LSTM = lambda d: (d.normal(5, 2, 3), 0.7 * d.normal(3, 16), 0.7 * d.normal(4, 16), d.normal(16))


@slips(
    lstm,
    LSTM,
    {
        "forget": ("missing_term", "w"),  # the cell's cotangent is not multiplied by the forget gate
        "cell": ("wrong_residual", "w"),  # the forget gate sees the cell after the step
        "tanh": ("missing_term", "w"),  # the slope of the cell's tanh is left out
        "order": ("swapped", "w"),  # the cotangents of two gates are in each other's place
        "output": ("missing_term", "b"),  # the bias sees no cotangent of the output gate
    },
)
def lstm_back(x: Array, w: Array, u: Array, b: Array, dy: Array, slip: str = "") -> Grads:
    zero = jnp.zeros((x.shape[1], u.shape[0]), x.dtype)

    def forward(carry: Any, x_t: Any) -> Any:
        h, c = carry
        i, f, g, o = jnp.split(x_t @ w + h @ u + b, 4, axis=-1)
        i, f, o = (1 / (1 + jnp.exp(-gate)) for gate in (i, f, o))
        g = jnp.tanh(g)
        new = f * c + i * g
        return (o * jnp.tanh(new), new), (h, c, new, i, f, g, o)

    kept = lax.scan(forward, (zero, zero), x)[1]

    def step(carry: Any, now: Any) -> Any:
        dh, dc, dw, du, db = carry
        grad, x_t, (h, c, new, i, f, g, o) = now
        dh = dh + grad
        squashed = jnp.tanh(new)
        do = dh * squashed
        slope = 1.0 if slip == "tanh" else 1 - squashed**2
        dc = dc + dh * o * slope
        di, dg = dc * g, dc * i
        df = dc * (new if slip == "cell" else c)
        zi, zf, zg, zo = di * i * (1 - i), df * f * (1 - f), dg * (1 - g**2), do * o * (1 - o)
        order = [zf, zi, zg, zo] if slip == "order" else [zi, zf, zg, zo]
        dz = jnp.concatenate(order, axis=-1)
        seen = jnp.concatenate([zi, zf, zg, 0 * zo], axis=-1) if slip == "output" else dz
        dc = dc if slip == "forget" else dc * f
        return (dz @ u.T, dc, dw + x_t.T @ dz, du + h.T @ dz, db + seen.sum(0)), dz @ w.T

    start = (zero, zero, jnp.zeros_like(w), jnp.zeros_like(u), jnp.zeros_like(b))
    (_, _, dw, du, db), dx = lax.scan(step, start, (dy, x, kept), reverse=True)
    return dx, dw, du, db


def selective(x: Array, dt: Array, a: Array, b: Array, c: Array) -> Array:
    """A state space whose step, input and output maps depend on time."""

    def step(h: Any, now: Any) -> Any:
        x_t, dt_t, b_t, c_t = now
        h = jnp.exp(-dt_t[:, None] * a) * h + (dt_t * x_t)[:, None] * b_t
        return h, h @ c_t

    return lax.scan(step, jnp.zeros_like(a), (x, dt, b, c))[1]


SELECTIVE = lambda d: (
    d.normal(6, 3),
    d.uniform(6, 3, low=0.1, high=0.9),
    d.uniform(3, 2),
    d.normal(6, 2),
    d.normal(6, 2),
)


@slips(
    selective,
    SELECTIVE,
    {
        "step": ("missing_term", "dt"),  # the step's path through the input is left out
        "decay": ("missing_term", "a"),  # the factor dt of the exponent is left out
        "output": ("wrong_residual", "c"),  # the state before the step
        "hold": ("missing_term", "x"),  # the state is carried back without its decay
        "rate": ("sign", "a"),  # the minus of the exponent is lost
    },
)
def selective_back(x: Array, dt: Array, a: Array, b: Array, c: Array, dy: Array, slip: str = "") -> Grads:
    def forward(h: Any, now: Any) -> Any:
        x_t, dt_t, b_t = now
        new = jnp.exp(-dt_t[:, None] * a) * h + (dt_t * x_t)[:, None] * b_t
        return new, (h, new)

    _, (before, after) = lax.scan(forward, jnp.zeros_like(a), (x, dt, b))

    def step(carry: Any, now: Any) -> Any:
        dh, da = carry
        g, x_t, dt_t, b_t, c_t, h_before, h_after = now
        dh = dh + g[:, None] * c_t[None, :]
        dc = g @ (h_before if slip == "output" else h_after)
        kept = jnp.exp(-dt_t[:, None] * a)
        dexponent = dh * h_before * kept
        ddt = -(dexponent * a).sum(1)
        along = dh @ b_t
        if slip != "step":
            ddt = ddt + along * x_t
        dx = along * dt_t
        db = (dt_t * x_t) @ dh
        rate = dexponent if slip == "decay" else dexponent * dt_t[:, None]
        da = da + rate if slip == "rate" else da - rate
        return (dh if slip == "hold" else dh * kept, da), (dx, ddt, db, dc)

    start = jnp.zeros_like(a), jnp.zeros_like(a)
    (_, da), (dx, ddt, db, dc) = lax.scan(step, start, (dy, x, dt, b, c, before, after), reverse=True)
    return dx, ddt, da, db, dc


def kalman_gain(p: Array, h: Array, r: Array) -> Array:
    return p @ h.T @ jnp.linalg.inv(h @ p @ h.T + r)


KALMAN = lambda d: (d.spd(4) + 0.1 * d.normal(4, 4), d.normal(3, 4), d.spd(3) + 0.1 * d.normal(3, 3))


@slips(
    kalman_gain,
    KALMAN,
    {
        "noise": ("sign", "r"),  # the inverse's minus is lost for r alone
        "direct": ("missing_term", "p"),  # only the path through the inverse
        "second": ("missing_term", "h"),  # h stands twice in the innovation's covariance; once here
        "inverse": ("transpose", "r"),  # the inverse is not transposed
    },
)
def kalman_gain_back(p: Array, h: Array, r: Array, dy: Array, slip: str = "") -> Grads:
    innovation = h @ p @ h.T + r
    gain = jnp.linalg.solve(innovation.T, (p @ h.T).T).T
    m = jnp.linalg.solve(innovation.T if slip == "inverse" else innovation, dy.T).T
    ds = -gain.T @ m
    dp = h.T @ ds @ h
    if slip != "direct":
        dp = dp + m @ h
    dh = m.T @ p + ds @ h @ p.T
    if slip != "second":
        dh = dh + ds.T @ h @ p
    dr = -ds if slip == "noise" else ds
    return dp, dh, dr


def kalman_mean(x: Array, k: Array, z: Array, h: Array) -> Array:
    return x + (z - x @ h.T) @ k.T


KALMAN_MEAN = lambda d: (d.normal(5, 4), d.normal(4, 3), d.normal(5, 3), d.normal(3, 4))


@wrong(kalman_mean, KALMAN_MEAN, "missing_term", "x")
def kalman_mean_identity(x: Array, k: Array, z: Array, h: Array, dy: Array) -> Grads:
    """The state itself is forgotten: only what the innovation gives."""
    dz = dy @ k
    return -dz @ h, dy.T @ (z - x @ h.T), dz, -dz.T @ x


@wrong(kalman_mean, KALMAN_MEAN, "wrong_residual", "k")
def kalman_mean_measured(x: Array, k: Array, z: Array, h: Array, dy: Array) -> Grads:
    """The measurement in place of the innovation."""
    dz = dy @ k
    return dy - dz @ h, dy.T @ z, dz, -dz.T @ x


@right(kalman_mean, KALMAN_MEAN, ALL)
def kalman_mean_joseph(x: Array, k: Array, z: Array, h: Array, dy: Array) -> Grads:
    keep = jnp.eye(x.shape[1], dtype=x.dtype) - k @ h
    return dy @ keep, (z - x @ h.T).T.dot(dy).T, dy @ k, -(k.T @ dy.T @ x)


def smooth(x: Array, alpha: Array) -> Array:
    """Exponential smoothing, begun at the first value."""

    def step(s: Any, now: Any) -> Any:
        s = (1 - alpha) * s + alpha * now
        return s, s

    return lax.scan(step, x[0], x)[1]


SMOOTH = lambda d: (d.normal(8, 3), d.uniform(3, low=0.2, high=0.8))


@slips(
    smooth,
    SMOOTH,
    {
        "start": ("border", "x", "missing_term"),  # the state's start is forgotten
        "rate": ("missing_term", "alpha"),  # only the new value's part
    },
    ALL,
)
def smooth_back(x: Array, alpha: Array, dy: Array, slip: str = "") -> Grads:
    s = smooth(x, alpha)
    before = jnp.concatenate([x[:1], s[:-1]])

    def step(carry: Any, now: Any) -> Any:
        ds, dalpha = carry
        g, x_t, s_before = now
        ds = ds + g
        change = x_t if slip == "rate" else x_t - s_before
        return ((1 - alpha) * ds, dalpha + ds * change), alpha * ds

    zero = jnp.zeros_like(alpha)
    (first, dalpha), dx = lax.scan(step, (zero, zero), (dy, x, before), reverse=True)
    return dx if slip == "start" else dx.at[0].add(first), dalpha


def euler(x: Array, w: Array) -> Array:
    """Five steps of Euler's method."""

    def step(x: Any, _: Any) -> Any:
        return x + 0.2 * jnp.tanh(x @ w), None

    return lax.scan(step, x, None, length=5)[0]


EULER = lambda d: (d.normal(3, 4), d.normal(4, 4))


@slips(
    euler,
    EULER,
    {
        "identity": ("missing_term", "x"),  # the step's identity is forgotten
        "size": ("scale", "w"),  # the step's size is left out, for the weights alone
        "times": ("wrong_residual", "w"),  # the states after the steps
    },
)
def euler_back(x: Array, w: Array, dy: Array, slip: str = "") -> Grads:
    def forward(x: Any, _: Any) -> Any:
        new = x + 0.2 * jnp.tanh(x @ w)
        return new, (x, new)

    _, (before, after) = lax.scan(forward, x, None, length=5)

    def step(carry: Any, now: Any) -> Any:
        g, dw = carry
        x_t, new = now
        slope = 1 - jnp.tanh(x_t @ w) ** 2
        dz = 0.2 * g * slope
        seen = new if slip == "times" else x_t
        dw = dw + seen.T @ (g * slope if slip == "size" else dz)
        back = dz @ w.T
        return (back if slip == "identity" else g + back, dw), None

    return lax.scan(step, (dy, jnp.zeros_like(w)), (before, after), reverse=True)[0]


def descend(start: Array, rate: Array, a: Array) -> Array:
    """Momentum on a quadratic, unrolled: the end depends on the learning rate."""

    def step(carry: Any, _: Any) -> Any:
        x, v = carry
        v = 0.9 * v - rate * (a @ x)
        return (x + v, v), None

    return lax.scan(step, (start, jnp.zeros_like(start)), None, length=4)[0][0]


DESCEND = lambda d: (d.normal(4), d.uniform(low=0.05, high=0.2), d.matrix(4))


@slips(
    descend,
    DESCEND,
    {
        "momentum": ("missing_term", "rate"),  # the velocity's carry is dropped
        "matrix": ("transpose", "start"),  # the Hessian is not transposed
        "rate": ("sign", "rate"),  # the step's minus
    },
)
def descend_back(start: Array, rate: Array, a: Array, dy: Array, slip: str = "") -> Grads:
    def forward(carry: Any, _: Any) -> Any:
        x, v = carry
        v = 0.9 * v - rate * (a @ x)
        return (x + v, v), x

    xs = lax.scan(forward, (start, jnp.zeros_like(start)), None, length=4)[1]

    def step(carry: Any, x: Any) -> Any:
        dx, dv, drate, da = carry
        dv = dx + (0 * dv if slip == "momentum" else dv)
        pull = (dv @ (a @ x)) * (1 if slip == "rate" else -1)
        da = da - rate * jnp.outer(dv, x)
        dx = dx - rate * ((a if slip == "matrix" else a.T) @ dv)
        return (dx, 0.9 * dv, drate + pull, da), None

    carry = dy, jnp.zeros_like(dy), jnp.zeros_like(rate), jnp.zeros_like(a)
    dx, _, drate, da = lax.scan(step, carry, xs, reverse=True)[0]
    return dx, drate, da


def hidden_markov(emission: Array, transition: Array) -> Array:
    """The log-likelihood of a hidden Markov model, by the forward algorithm."""

    def step(alpha: Any, now: Any) -> Any:
        return special.logsumexp(alpha[:, None] + transition, axis=0) + now, None

    return special.logsumexp(lax.scan(step, emission[0], emission[1:])[0])


HIDDEN = lambda d: (d.normal(6, 4), d.normal(4, 4))


@slips(
    hidden_markov,
    HIDDEN,
    {
        "axis": ("wrong_axis", "transition"),  # the posterior is normalised over the next state
        "first": ("border", "emission", "missing_term"),  # the first emission gets nothing
        "filter": ("missing_term", "emission"),  # filtered, not smoothed: nothing comes from the future
    },
)
def hidden_markov_back(emission: Array, transition: Array, dy: Array, slip: str = "") -> Grads:
    def forward(alpha: Any, now: Any) -> Any:
        new = special.logsumexp(alpha[:, None] + transition, axis=0) + now
        return new, (alpha, new)

    last, (before, after) = lax.scan(forward, emission[0], emission[1:])

    def step(carry: Any, now: Any) -> Any:
        g, da = carry
        alpha, new, e = now
        if slip == "filter":
            g = dy * jax.nn.softmax(new)
        joint = alpha[:, None] + transition
        whole = special.logsumexp(joint, axis=1)[:, None] if slip == "axis" else new - e
        share = jnp.exp(joint - whole) * g
        return (share.sum(1), da + share), g

    carry = dy * jnp.exp(last - special.logsumexp(last)), jnp.zeros_like(transition)
    (first, da), de = lax.scan(step, carry, (before, after, emission[1:]), reverse=True)
    if slip == "first":
        first = 0 * first
    return jnp.concatenate([first[None], de]), da


def running_sum(x: Array) -> Array:
    return jnp.cumsum(x, axis=1)


@wrong(running_sum, lambda d: (d.normal(4, 7),), "flip", "x")
def running_sum_forward(x: Array, dy: Array) -> Array:
    """Summed from the left again; the cotangents come from the right."""
    return jnp.cumsum(dy, axis=1)


@wrong(running_sum, lambda d: (d.normal(5, 5),), "wrong_axis", "x")
def running_sum_axis(x: Array, dy: Array) -> Array:
    """The other axis; both are equally long."""
    return jnp.cumsum(dy[::-1], axis=0)[::-1]


@right(running_sum, lambda d: (d.normal(4, 7),))
def running_sum_total(x: Array, dy: Array) -> Array:
    return dy.sum(1, keepdims=True) - jnp.cumsum(dy, axis=1) + dy


def running_product(x: Array) -> Array:
    return jnp.cumprod(x)


@wrong(running_product, lambda d: (d.uniform(7),), "missing_term", "x")
def running_product_local(x: Array, dy: Array) -> Array:
    """Every product counts for its last factor only."""
    return dy * jnp.cumprod(x) / x


@right(running_product, lambda d: (d.uniform(7),))
def running_product_quotient(x: Array, dy: Array) -> Array:
    return lax.cumsum(dy * jnp.cumprod(x), reverse=True) / x


# ---- geometry ---------------------------------------------------------------------------------------------


def turn(angle: Array, x: Array) -> Array:
    """Points in the plane, each turned by its angle."""
    c, s = jnp.cos(angle), jnp.sin(angle)
    return jnp.stack([c * x[:, 0] - s * x[:, 1], s * x[:, 0] + c * x[:, 1]], axis=1)


TURN = lambda d: (d.normal(7), d.normal(7, 2))


@wrong(turn, TURN, "transpose", "x", "sign")
def turn_again(angle: Array, x: Array, dy: Array) -> Grads:
    """The cotangent is turned forward, not back."""
    y = turn(angle, x)
    return dy[:, 1] * y[:, 0] - dy[:, 0] * y[:, 1], turn(angle, dy)


@wrong(turn, TURN, "wrong_residual", "angle")
def turn_before(angle: Array, x: Array, dy: Array) -> Grads:
    """The point before its turn stands where the turned one is needed."""
    return dy[:, 1] * x[:, 0] - dy[:, 0] * x[:, 1], turn(-angle, dy)


@right(turn, TURN, ALL)
def turn_complex(angle: Array, x: Array, dy: Array) -> Grads:
    """As numbers of the complex plane, written out."""
    y = turn(angle, x)
    return (dy * jnp.stack([-y[:, 1], y[:, 0]], axis=1)).sum(1), turn(-angle, dy)


def rotate(q: Array, v: Array) -> Array:
    """Vectors turned by unit quaternions (w, x, y, z)."""
    w, u = q[:, :1], q[:, 1:]
    across = 2 * jnp.cross(u, v)
    return v + w * across + jnp.cross(u, across)


ROTATE = lambda d: (d.normal(5, 4), d.normal(5, 3))


@slips(
    rotate,
    ROTATE,
    {
        "identity": ("missing_term", "v"),  # the vector itself
        "real": ("missing_term", "q"),  # the factor two of the real part
        "order": ("sign", "q"),  # a cross product's operands are exchanged
        "inner": ("missing_term", "q"),  # u's second place, inside of the inner product
    },
    ALL,
)
def rotate_back(q: Array, v: Array, dy: Array, slip: str = "") -> Grads:
    w, u = q[:, :1], q[:, 1:]
    across = 2 * jnp.cross(u, v)
    dacross = w * dy + jnp.cross(dy, u)
    dw = (dy * across).sum(1, keepdims=True)
    if slip == "real":
        dw = dw / 2
    du = jnp.cross(dy, across) if slip == "order" else jnp.cross(across, dy)
    if slip != "inner":
        du = du + 2 * jnp.cross(v, dacross)
    dv = 2 * jnp.cross(dacross, u)
    if slip != "identity":
        dv = dv + dy
    return jnp.concatenate([dw, du], axis=1), dv


def quaternion_product(p: Array, q: Array) -> Array:
    return jnp.concatenate(
        [
            p[:, :1] * q[:, :1] - (p[:, 1:] * q[:, 1:]).sum(1, keepdims=True),
            p[:, :1] * q[:, 1:] + q[:, :1] * p[:, 1:] + jnp.cross(p[:, 1:], q[:, 1:]),
        ],
        axis=1,
    )


CONJUGATE = np.array([1.0, -1.0, -1.0, -1.0], np.float32)
PRODUCT = lambda d: (d.normal(6, 4), d.normal(6, 4))


@wrong(quaternion_product, PRODUCT, "swapped", "p")
def quaternion_product_order(p: Array, q: Array, dy: Array) -> Grads:
    """Quaternions do not commute: conj(q)·dy in place of dy·conj(q)."""
    return quaternion_product(q * CONJUGATE, dy), quaternion_product(p * CONJUGATE, dy)


@wrong(quaternion_product, PRODUCT, "missing_term", "q", "sign")
def quaternion_product_conjugate(p: Array, q: Array, dy: Array) -> Grads:
    """The conjugate of p is forgotten."""
    return quaternion_product(dy, q * CONJUGATE), quaternion_product(p, dy)


@right(quaternion_product, PRODUCT)
def quaternion_product_conjugates(p: Array, q: Array, dy: Array) -> Grads:
    return quaternion_product(dy, q * CONJUGATE), quaternion_product(p * CONJUGATE, dy)


def point_to_plane(source: Array, target: Array, normal: Array) -> Array:
    return ((source - target) * normal).sum(1) ** 2


PLANES = lambda d: (d.normal(7, 3), d.normal(7, 3), d.normal(7, 3))


@wrong(point_to_plane, PLANES, "sign", "target")
def point_to_plane_target(source: Array, target: Array, normal: Array, dy: Array) -> Grads:
    """Both clouds are pulled the same way."""
    off = ((source - target) * normal).sum(1)
    g = (2 * dy * off)[:, None]
    return g * normal, g * normal, g * (source - target)


@wrong(point_to_plane, PLANES, "missing_term", "source")
def point_to_plane_linear(source: Array, target: Array, normal: Array, dy: Array) -> Grads:
    """The square's inner derivative, the distance, is left out of one of three."""
    off = ((source - target) * normal).sum(1)
    g = (2 * dy * off)[:, None]
    return 2 * dy[:, None] * normal, -g * normal, g * (source - target)


@right(point_to_plane, PLANES, ALL)
def point_to_plane_einsum(source: Array, target: Array, normal: Array, dy: Array) -> Grads:
    off = jnp.einsum("ij,ij->i", source, normal) - jnp.einsum("ij,ij->i", target, normal)
    pull = jnp.einsum("i,i,ij->ij", 2 * dy, off, normal)
    return pull, -pull, jnp.einsum("i,i,ij->ij", 2 * dy, off, source - target)


def rodrigues(axis: Array, angle: Array, v: Array) -> Array:
    """Vectors turned about unit axes."""
    c, s = jnp.cos(angle)[:, None], jnp.sin(angle)[:, None]
    along = (axis * v).sum(1, keepdims=True)
    return c * v + s * jnp.cross(axis, v) + (1 - c) * along * axis


RODRIGUES = lambda d: (d.normal(5, 3), d.normal(5), d.normal(5, 3))


@slips(
    rodrigues,
    RODRIGUES,
    {
        "angle": ("sign", "angle"),  # the cosine's derivative
        "projection": ("missing_term", "axis"),  # one of the two places of the axis in its projection
        "keepdims": ("shape", "angle"),  # the sum over coordinates keeps its axis
    },
)
def rodrigues_back(axis: Array, angle: Array, v: Array, dy: Array, slip: str = "") -> Grads:
    c, s = jnp.cos(angle)[:, None], jnp.sin(angle)[:, None]
    along = (axis * v).sum(1, keepdims=True)
    across = jnp.cross(axis, v)
    toward = (dy * axis).sum(1, keepdims=True)
    dangle = (dy * (c * across - s * v + s * along * axis)).sum(1, keepdims=slip == "keepdims")
    if slip == "angle":
        dangle = -dangle
    dalong = (1 - c) * toward
    daxis = s * jnp.cross(v, dy) + (1 - c) * along * dy
    if slip != "projection":
        daxis = daxis + dalong * v
    dv = c * dy + s * jnp.cross(dy, axis) + dalong * axis
    return daxis, dangle, dv


def project(points: Array, focal: Array, centre: Array) -> Array:
    """A pinhole camera."""
    return focal * points[:, :2] / points[:, 2:] + centre


PROJECT = lambda d: (
    np.concatenate([d.normal(6, 2), d.uniform(6, 1)], axis=1),
    d.uniform(2),
    d.normal(2),
)


@wrong(project, PROJECT, "missing_term", "points")
def project_depth(points: Array, focal: Array, centre: Array, dy: Array) -> Grads:
    """The depth is not squared."""
    flat, depth = points[:, :2], points[:, 2:]
    dflat = dy * focal / depth
    ddepth = -(dy * focal * flat / depth).sum(1, keepdims=True)
    return jnp.concatenate([dflat, ddepth], axis=1), (dy * flat / depth).sum(0), dy.sum(0)


@wrong(project, PROJECT, "missing_batch_sum", "centre")
def project_centre(points: Array, focal: Array, centre: Array, dy: Array) -> Grads:
    """The centre belongs to all points, and gets the first one's cotangent."""
    flat, depth = points[:, :2], points[:, 2:]
    dflat = dy * focal / depth
    ddepth = -(dflat * flat).sum(1, keepdims=True) / depth
    return jnp.concatenate([dflat, ddepth], axis=1), (dy * flat / depth).sum(0), dy[0]


@wrong(project, PROJECT, "unbroadcast", "focal", "shape")
def project_focal(points: Array, focal: Array, centre: Array, dy: Array) -> Grads:
    """The focal length's cotangent is not summed over the points."""
    flat, depth = points[:, :2], points[:, 2:]
    dflat = dy * focal / depth
    ddepth = -(dflat * flat).sum(1, keepdims=True) / depth
    return jnp.concatenate([dflat, ddepth], axis=1), dy * flat / depth, dy.sum(0)


@right(project, PROJECT)
def project_image(points: Array, focal: Array, centre: Array, dy: Array) -> Grads:
    """From the image back: what was projected holds the quotients."""
    image = (project(points, focal, centre) - centre) / focal
    scaled = dy * focal / points[:, 2:]
    depth = -jnp.einsum("ij,ij->i", scaled, image)[:, None]
    return jnp.concatenate([scaled, depth], axis=1), jnp.einsum("ij,ij->j", dy, image), dy.sum(0)


def distances(x: Array, z: Array) -> Array:
    """Euclidean; a point may lie on another."""
    square = ((x[:, None] - z[None]) ** 2).sum(2)
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)


def _touching(d: Draw) -> tuple[Any, ...]:
    x = d.normal(5, 3)
    z = np.concatenate([x[:2], d.normal(4, 3)])
    return x, z


@wrong(distances, _touching, "nan", "x")
def distances_divided(x: Array, z: Array, dy: Array) -> Grads:
    """Divided by a distance of 0 where two points touch."""
    apart = x[:, None] - z[None]
    g = (dy / jnp.sqrt((apart**2).sum(2)))[..., None] * apart
    return g.sum(1), -g.sum(0)


@wrong(distances, _touching, "zero", "z")
def distances_anchor(x: Array, z: Array, dy: Array) -> Grads:
    """The second cloud is taken for constant."""
    far = distances(x, z)
    scaled = jnp.where(far > 0, dy / jnp.where(far > 0, far, 1), 0)
    return scaled.sum(1)[:, None] * x - scaled @ z, jnp.zeros_like(z)


@wrong(distances, lambda d: (d.normal(5, 3), d.normal(5, 3)), "wrong_axis", "z")
def distances_axis(x: Array, z: Array, dy: Array) -> Grads:
    """Both gradients sum over the second cloud; the clouds are equally large."""
    g = (dy / distances(x, z))[..., None] * (x[:, None] - z[None])
    return g.sum(1), -g.sum(1)


@right(distances, _touching)
def distances_weights(x: Array, z: Array, dy: Array) -> Grads:
    far = distances(x, z)
    scaled = jnp.where(far > 0, dy / jnp.where(far > 0, far, 1), 0)
    apart = z[None] - x[:, None]
    return -jnp.einsum("ij,ijk->ik", scaled, apart), jnp.einsum("ij,ijk->jk", scaled, apart)


def direction(x: Array) -> Array:
    return x / jnp.sqrt((x**2).sum(-1, keepdims=True))


@wrong(direction, lambda d: (d.normal(5, 4),), "statistics_constant", "x", "missing_term")
def direction_length(x: Array, dy: Array) -> Array:
    """The length is held constant."""
    return dy / jnp.sqrt((x**2).sum(-1, keepdims=True))


@wrong(direction, lambda d: (d.normal(5, 5),), "wrong_axis", "x")
def direction_axis(x: Array, dy: Array) -> Array:
    """What lies along the vector is summed over the vectors."""
    y = direction(x)
    return (dy - y * (y * dy).sum(0, keepdims=True)) / jnp.sqrt((x**2).sum(-1, keepdims=True))


@right(direction, lambda d: (d.normal(5, 4),), ALL)
def direction_projector(x: Array, dy: Array) -> Array:
    """By the matrix that projects onto the tangent plane."""
    length = jnp.sqrt((x * x).sum(-1))
    y = x / length[:, None]
    plane = jnp.eye(x.shape[1], dtype=x.dtype) - y[:, :, None] * y[:, None, :]
    return jnp.einsum("nij,nj->ni", plane, dy) / length[:, None]


def triangle_areas(a: Array, b: Array, c: Array) -> Array:
    return jnp.sqrt((jnp.cross(b - a, c - a) ** 2).sum(1)) / 2


TRIANGLES = lambda d: (d.normal(5, 3), d.normal(5, 3), d.normal(5, 3))


@wrong(triangle_areas, TRIANGLES, "missing_term", "a")
def triangle_areas_corner(a: Array, b: Array, c: Array, dy: Array) -> Grads:
    """The first corner stands in both sides; one is forgotten."""
    n = jnp.cross(b - a, c - a)
    g = 0.5 * dy[:, None] * n / jnp.sqrt((n**2).sum(1, keepdims=True))
    db, dc = jnp.cross(c - a, g), jnp.cross(g, b - a)
    return -db, db, dc


@wrong(triangle_areas, TRIANGLES, "scale", "b")
def triangle_areas_half(a: Array, b: Array, c: Array, dy: Array) -> Grads:
    """One half too many, in one of the corners."""
    n = jnp.cross(b - a, c - a)
    g = 0.5 * dy[:, None] * n / jnp.sqrt((n**2).sum(1, keepdims=True))
    db, dc = jnp.cross(c - a, g), jnp.cross(g, b - a)
    return -db - dc, db / 2, dc


@right(triangle_areas, TRIANGLES)
def triangle_areas_edges(a: Array, b: Array, c: Array, dy: Array) -> Grads:
    """Each corner is pulled at a right angle to the side across from it."""
    n = jnp.cross(a, b) + jnp.cross(b, c) + jnp.cross(c, a)
    n = n / jnp.linalg.norm(n, axis=1, keepdims=True)
    half = dy[:, None] / 2
    return half * jnp.cross(b - c, n), half * jnp.cross(c - a, n), half * jnp.cross(a - b, n)


def sample_image(image: Array, at: Array) -> Array:
    """Bilinear interpolation at points (row, column)."""
    low = jnp.floor(at).astype(jnp.int32)
    r, c = (at - low)[:, 0], (at - low)[:, 1]
    i, j = low[:, 0], low[:, 1]
    top = image[i, j] * (1 - c) + image[i, j + 1] * c
    bottom = image[i + 1, j] * (1 - c) + image[i + 1, j + 1] * c
    return top * (1 - r) + bottom * r


def _scattered(d: Draw) -> tuple[Any, ...]:
    return d.normal(5, 6), d.uniform(9, 2, low=0.1, high=0.9) + d.below(4, 9, 2)


@slips(
    sample_image,
    _scattered,
    {
        "set": ("missing_term", "image"),  # two points in one cell overwrite each other
        "exchanged": ("swapped", "at"),  # the slopes along rows and columns
        "weight": ("swapped", "image"),  # a corner's weight
    },
)
def sample_image_back(image: Array, at: Array, dy: Array, slip: str = "") -> Grads:
    low = jnp.floor(at).astype(jnp.int32)
    r, c = (at - low)[:, 0], (at - low)[:, 1]
    i, j = low[:, 0], low[:, 1]
    corners = [(i, j), (i, j + 1), (i + 1, j), (i + 1, j + 1)]
    weights = [(1 - r) * (1 - c), (1 - r) * c, r * (1 - c), r * c]
    if slip == "weight":
        weights[1], weights[2] = weights[2], weights[1]
    dimage = jnp.zeros_like(image)
    for corner, weight in zip(corners, weights, strict=True):
        spot = dimage.at[corner]
        dimage = spot.set(weight * dy) if slip == "set" else spot.add(weight * dy)
    a, b, e, f = (image[corner] for corner in corners)
    along_row = (1 - c) * (e - a) + c * (f - b)
    along_column = (1 - r) * (b - a) + r * (f - e)
    both = [along_column, along_row] if slip == "exchanged" else [along_row, along_column]
    return dimage, jnp.stack(both, axis=1) * dy[:, None]


def sphere(angles: Array) -> Array:
    """From polar angle and azimuth to the unit sphere."""
    polar, azimuth = angles[:, 0], angles[:, 1]
    flat = jnp.sin(polar)
    return jnp.stack([flat * jnp.cos(azimuth), flat * jnp.sin(azimuth), jnp.cos(polar)], axis=1)


@wrong(sphere, lambda d: (d.uniform(6, 2),), "sign", "angles")
def sphere_height(angles: Array, dy: Array) -> Array:
    """The height grows with the polar angle: cosine's minus is lost."""
    polar, azimuth = angles[:, 0], angles[:, 1]
    flat = dy[:, 0] * jnp.cos(azimuth) + dy[:, 1] * jnp.sin(azimuth)
    dpolar = jnp.cos(polar) * flat + jnp.sin(polar) * dy[:, 2]
    dazimuth = jnp.sin(polar) * (dy[:, 1] * jnp.cos(azimuth) - dy[:, 0] * jnp.sin(azimuth))
    return jnp.stack([dpolar, dazimuth], axis=1)


@right(sphere, lambda d: (d.uniform(6, 2),))
def sphere_tangents(angles: Array, dy: Array) -> Array:
    """From the point itself and its distance from the poles' axis."""
    y = sphere(angles)
    flat = jnp.sqrt(y[:, 0] ** 2 + y[:, 1] ** 2)
    dpolar = (y[:, 0] * dy[:, 0] + y[:, 1] * dy[:, 1]) * y[:, 2] / flat - flat * dy[:, 2]
    return jnp.stack([dpolar, y[:, 0] * dy[:, 1] - y[:, 1] * dy[:, 0]], axis=1)


# ---- probability ------------------------------------------------------------------------------------------


def gaussian(x: Array, mean: Array, chol: Array) -> Array:
    """Log-densities of rows, with the Cholesky factor of the covariance."""
    z = linalg.solve_triangular(chol, (x - mean).T, lower=True)
    return -0.5 * (z**2).sum(0) - jnp.log(jnp.diag(chol)).sum() - x.shape[1] * np.log(2 * np.pi) / 2


GAUSSIAN = lambda d: (d.normal(6, 3), d.normal(3), d.lower(3))


@slips(
    gaussian,
    GAUSSIAN,
    {
        "determinant": ("missing_term", "chol"),  # the log-determinant is forgotten
        "triangle": ("mask", "chol"),  # what lies above the diagonal is no argument
        "solve": ("transpose", "x"),  # solved with the factor itself once more
        "mean": ("sign", "mean"),  # the mean's minus
    },
)
def gaussian_back(x: Array, mean: Array, chol: Array, dy: Array, slip: str = "") -> Grads:
    z = linalg.solve_triangular(chol, (x - mean).T, lower=True)
    if slip == "solve":
        p = linalg.solve_triangular(chol, z, lower=True)
    else:
        p = linalg.solve_triangular(chol.T, z, lower=False)
    dx = -(p * dy).T
    dchol = (p * dy) @ z.T
    if slip != "triangle":
        dchol = jnp.tril(dchol)
    if slip != "determinant":
        dchol = dchol - jnp.diag(dy.sum() / jnp.diag(chol))
    dmean = dx.sum(0) if slip == "mean" else -dx.sum(0)
    return dx, dmean, dchol


def student(x: Array, df: Array, scale: Array) -> Array:
    """Student's t, as a log-density."""
    z = (x / scale) ** 2 / df
    shape = special.gammaln((df + 1) / 2) - special.gammaln(df / 2) - 0.5 * jnp.log(df * np.pi)
    return shape - jnp.log(scale) - (df + 1) / 2 * jnp.log1p(z)


STUDENT = lambda d: (d.normal(7), d.uniform(low=3, high=6), d.uniform(low=0.8, high=1.2))


@slips(
    student,
    STUDENT,
    {
        "half": ("missing_term", "df"),  # the half inside of the first digamma's argument
        "normaliser": ("missing_term", "df"),  # the square root of df
        "scale": ("missing_term", "scale"),  # the logarithm of the scale
        "first": ("missing_batch_sum", "scale"),  # only the first sample
    },
)
def student_back(x: Array, df: Array, scale: Array, dy: Array, slip: str = "") -> Grads:
    t = x / scale
    dt = -(df + 1) * t / (df + t**2)
    dx = dy * dt / scale
    own = -1 / scale - dt * t / scale
    if slip == "scale":
        own = -dt * t / scale
    digamma = special.digamma((df + 1) / 2) - special.digamma(df / 2)
    if slip != "half":
        digamma = 0.5 * digamma
    if slip != "normaliser":
        digamma = digamma - 0.5 / df
    z = t**2 / df
    ddf = dy * (digamma - 0.5 * jnp.log1p(z) + 0.5 * (df + 1) * z / df / (1 + z))
    dscale = dy * own
    return dx, ddf.sum(), dscale[0] if slip == "first" else dscale.sum()


def dirichlet(x: Array, alpha: Array) -> Array:
    """Dirichlet's log-density, without the constraint that x adds up to one."""
    normaliser = special.gammaln(alpha.sum(-1)) - special.gammaln(alpha).sum(-1)
    return normaliser + ((alpha - 1) * jnp.log(x)).sum(-1)


DIRICHLET = lambda d: (d.uniform(5, 4), d.uniform(5, 4, low=1, high=3))


@wrong(dirichlet, DIRICHLET, "missing_term", "alpha")
def dirichlet_total(x: Array, alpha: Array, dy: Array) -> Grads:
    """The digamma of the total is forgotten."""
    g = dy[:, None]
    return g * (alpha - 1) / x, g * (jnp.log(x) - special.digamma(alpha))


@wrong(dirichlet, DIRICHLET, "missing_term", "x")
def dirichlet_one(x: Array, alpha: Array, dy: Array) -> Grads:
    """alpha in place of alpha − 1."""
    g = dy[:, None]
    total = special.digamma(alpha.sum(-1, keepdims=True))
    return g * alpha / x, g * (jnp.log(x) - special.digamma(alpha) + total)


@right(dirichlet, DIRICHLET)
def dirichlet_digamma(x: Array, alpha: Array, dy: Array) -> Grads:
    total = special.polygamma(0, alpha.sum(-1))
    slope = jnp.log(x) + total[:, None] - special.polygamma(0, alpha)
    return jnp.einsum("n,nk->nk", dy, (alpha - 1) / x), jnp.einsum("n,nk->nk", dy, slope)


def mixture(x: Array, logits: Array, mean: Array, scale: Array) -> Array:
    """The log-density of a mixture of Gaussians on the line."""
    weight = jax.nn.log_softmax(logits)
    z = (x[:, None] - mean) / scale
    return special.logsumexp(weight - 0.5 * z**2 - jnp.log(scale) - 0.5 * np.log(2 * np.pi), axis=1)


MIXTURE = lambda d: (d.normal(7), d.normal(3), d.normal(3), d.uniform(3))


@slips(
    mixture,
    MIXTURE,
    {
        "prior": ("missing_term", "logits"),  # the softmax's own normaliser
        "weights": ("missing_term", "mean"),  # responsibilities that leave out the weights
        "scale": ("missing_term", "scale"),  # the logarithm of the scale
        "axis": ("wrong_axis", "x"),  # responsibilities that add up over the samples
    },
)
def mixture_back(x: Array, logits: Array, mean: Array, scale: Array, dy: Array, slip: str = "") -> Grads:
    weight = logits - special.logsumexp(logits)
    z = (x[:, None] - mean) / scale
    log_joint = weight - 0.5 * z**2 - jnp.log(scale)
    if slip == "weights":
        log_joint = log_joint - weight
    axis = 0 if slip == "axis" else 1
    share = jax.nn.softmax(log_joint, axis=axis) * dy[:, None]
    dlogits = share.sum(0)
    if slip != "prior":
        dlogits = dlogits - jnp.exp(weight) * share.sum()
    dmean = share * z / scale
    bracket = z**2 if slip == "scale" else z**2 - 1
    return -dmean.sum(1), dlogits, dmean.sum(0), (share * bracket / scale).sum(0)


def divergence(mean: Array, log_var: Array, prior_mean: Array, prior_log_var: Array) -> Array:
    """From one diagonal Gaussian to another."""
    ratio = (jnp.exp(log_var) + (mean - prior_mean) ** 2) / jnp.exp(prior_log_var)
    return 0.5 * (prior_log_var - log_var + ratio - 1).sum(-1)


DIVERGENCE = lambda d: (d.normal(5, 3), d.normal(5, 3), d.normal(5, 3), d.normal(5, 3))


@wrong(divergence, DIVERGENCE, "missing_term", "prior_log_var")
def divergence_prior(
    mean: Array, log_var: Array, prior_mean: Array, prior_log_var: Array, dy: Array
) -> Grads:
    """The prior's variance divides the distance of the means, too."""
    g = 0.5 * dy[:, None]
    inverse = jnp.exp(-prior_log_var)
    pull = 2 * g * (mean - prior_mean) * inverse
    own = g * (jnp.exp(log_var - prior_log_var) - 1)
    return pull, own, -pull, g * (1 - jnp.exp(log_var - prior_log_var))


@wrong(divergence, DIVERGENCE, "extra_term", "log_var")
def divergence_extra(
    mean: Array, log_var: Array, prior_mean: Array, prior_log_var: Array, dy: Array
) -> Grads:
    """The squared distance is counted for the variance."""
    g = 0.5 * dy[:, None]
    inverse = jnp.exp(-prior_log_var)
    apart = mean - prior_mean
    ratio = (jnp.exp(log_var) + apart**2) * inverse
    return 2 * g * apart * inverse, g * (ratio - 1), -2 * g * apart * inverse, g * (1 - ratio)


@right(divergence, DIVERGENCE, ALL)
def divergence_whitened(
    mean: Array, log_var: Array, prior_mean: Array, prior_log_var: Array, dy: Array
) -> Grads:
    half = dy[:, None] / 2
    z = (mean - prior_mean) * jnp.exp(-prior_log_var / 2)
    spread = jnp.expm1(log_var - prior_log_var)
    pull = dy[:, None] * z * jnp.exp(-prior_log_var / 2)
    return pull, half * spread, -pull, -half * (spread + z * z)


def poisson(counts: Array, w: Array, x: Array, offset: Array) -> Array:
    """The log-likelihood of counts, the rate being an exponential."""
    rate = x @ w + offset
    return (counts * rate - jnp.exp(rate) - special.gammaln(counts + 1)).sum()


POISSON = lambda d: (d.uniform(7, low=1, high=4), d.normal(3), d.normal(7, 3) / 2, d.normal())


@wrong(poisson, POISSON, "wrong_residual", "w", "missing_term")
def poisson_rate(counts: Array, w: Array, x: Array, offset: Array, dy: Array) -> Grads:
    """The logarithm of the rate in place of the rate."""
    eta = x @ w + offset
    g = dy * (counts - jnp.exp(eta))
    dcounts = dy * (eta - special.digamma(counts + 1))
    return dcounts, dy * x.T @ (counts - eta), jnp.outer(g, w), g.sum()


@wrong(poisson, POISSON, "missing_term", "counts")
def poisson_factorial(counts: Array, w: Array, x: Array, offset: Array, dy: Array) -> Grads:
    """The factorial is taken for constant."""
    eta = x @ w + offset
    g = dy * (counts - jnp.exp(eta))
    return dy * eta, x.T @ g, jnp.outer(g, w), g.sum()


@right(poisson, POISSON)
def poisson_chunks(counts: Array, w: Array, x: Array, offset: Array, dy: Array) -> Grads:
    """The samples in pieces of three."""
    pieces, dw, doffset = [], jnp.zeros_like(w), jnp.zeros_like(offset)
    for start in range(0, x.shape[0], 3):
        part = slice(start, start + 3)
        residual = counts[part] - jnp.exp(x[part] @ w + offset)
        dw = dw + residual @ x[part]
        doffset = doffset + residual.sum()
        pieces.append(residual[:, None] * w)
    dcounts = dy * (x @ w + offset - special.digamma(counts + 1))
    return dcounts, dy * dw, dy * jnp.concatenate(pieces), dy * doffset


def von_mises(x: Array, mean: Array, kappa: Array) -> Array:
    return kappa * jnp.cos(x - mean) - jnp.log(2 * np.pi * special.i0e(kappa)) - kappa


VON_MISES = lambda d: (d.normal(6), d.normal(), d.uniform(6, low=1, high=3))


@wrong(von_mises, VON_MISES, "missing_term", "kappa")
def von_mises_bessel(x: Array, mean: Array, kappa: Array, dy: Array) -> Grads:
    """The normaliser depends on the concentration, too."""
    g = dy * kappa * jnp.sin(x - mean)
    return -g, g.sum(), dy * jnp.cos(x - mean)


@wrong(von_mises, VON_MISES, "missing_term", "x")
def von_mises_factor(x: Array, mean: Array, kappa: Array, dy: Array) -> Grads:
    """The concentration is left out where the angle is differentiated."""
    g = dy * kappa * jnp.sin(x - mean)
    ratio = special.i1e(kappa) / special.i0e(kappa)
    return -dy * jnp.sin(x - mean), g.sum(), dy * (jnp.cos(x - mean) - ratio)


@right(von_mises, VON_MISES)
def von_mises_ratio(x: Array, mean: Array, kappa: Array, dy: Array) -> Grads:
    c, s = jnp.cos(mean), jnp.sin(mean)
    across = jnp.sin(x) * c - jnp.cos(x) * s
    along = jnp.cos(x) * c + jnp.sin(x) * s
    ratio = special.i1e(kappa) / special.i0e(kappa)
    return -dy * kappa * across, dy @ (kappa * across), dy * (along - ratio)


def beta_density(x: Array, a: Array, b: Array) -> Array:
    return (a - 1) * jnp.log(x) + (b - 1) * jnp.log1p(-x) - special.betaln(a, b)


BETA = lambda d: (d.uniform(6, low=0.1, high=0.9), d.uniform(6, low=1, high=3), d.uniform(6, low=1, high=3))


@wrong(beta_density, BETA, "sign", "x")
def beta_density_sign(x: Array, a: Array, b: Array, dy: Array) -> Grads:
    """The second logarithm's inner derivative, −1, is lost."""
    total = special.digamma(a + b)
    dx = dy * ((a - 1) / x + (b - 1) / (1 - x))
    da = dy * (jnp.log(x) - special.digamma(a) + total)
    return dx, da, dy * (jnp.log1p(-x) - special.digamma(b) + total)


@right(beta_density, BETA)
def beta_density_joined(x: Array, a: Array, b: Array, dy: Array) -> Grads:
    """One fraction in place of two."""
    dx = dy * ((a - 1) - (a + b - 2) * x) / (x * (1 - x))
    da = dy * (jnp.log(x) - special.digamma(a) + special.digamma(a + b))
    return dx, da, dy * (jnp.log1p(-x) - special.digamma(b) + special.digamma(a + b))


def logistic(x: Array, w: Array, labels: Array) -> Array:
    """The mean loss of a logistic regression with labels of −1 and 1."""
    return jnp.logaddexp(0, -labels * (x @ w)).mean()


LOGISTIC = lambda d: (d.normal(7, 3), d.normal(3), np.where(d.bits(7), 1, -1).astype(np.int32))


@wrong(logistic, LOGISTIC, "scale", "w")
def logistic_mean(x: Array, w: Array, labels: Array, dy: Array) -> Grads:
    """The sum in place of the mean, for the weights."""
    g = -dy * labels * jax.nn.sigmoid(-labels * (x @ w))
    return jnp.outer(g, w) / x.shape[0], x.T @ g, None


@wrong(logistic, LOGISTIC, "missing_term", "w")
def logistic_labels(x: Array, w: Array, labels: Array, dy: Array) -> Grads:
    """A label is left out where the sigmoid is multiplied."""
    s = jax.nn.sigmoid(-labels * (x @ w))
    g = -dy * labels * s / x.shape[0]
    return jnp.outer(g, w), -dy * x.T @ s / x.shape[0], None


@right(logistic, LOGISTIC, ALL)
def logistic_tanh(x: Array, w: Array, labels: Array, dy: Array) -> Grads:
    margin = labels * (x @ w)
    g = dy * labels * (jnp.tanh(margin / 2) - 1) / (2 * x.shape[0])
    return g[:, None] * w[None], (g[:, None] * x).sum(0), None


def entropy(logits: Array) -> Array:
    p = jax.nn.softmax(logits)
    return -(p * jnp.log(p)).sum(-1)


@wrong(entropy, lambda d: (d.normal(5, 4),), "missing_term", "logits")
def entropy_mean(logits: Array, dy: Array) -> Array:
    """The mean of the logarithms is not subtracted."""
    p = jax.nn.softmax(logits)
    return -dy[:, None] * p * jnp.log(p)


@wrong(entropy, lambda d: (d.normal(4, 4),), "wrong_axis", "logits")
def entropy_axis(logits: Array, dy: Array) -> Array:
    """The cotangents run along the classes, not along the samples; there are as many of both."""
    p = jax.nn.softmax(logits)
    log_p = jnp.log(p)
    return -dy[None, :] * p * (log_p - (p * log_p).sum(-1, keepdims=True))


@right(entropy, lambda d: (d.normal(5, 4),), ALL)
def entropy_centred(logits: Array, dy: Array) -> Array:
    p = jax.nn.softmax(logits)
    mean = (p * logits).sum(-1, keepdims=True)
    return dy[:, None] * p * (mean - logits)


def relaxed(logits: Array, noise: Array, temperature: Array) -> Array:
    """A sample of Gumbel's softmax."""
    return jax.nn.softmax((logits + noise) / temperature)


RELAXED = lambda d: (d.normal(5, 4), d.normal(5, 4), d.uniform(low=0.5, high=0.9))


@wrong(relaxed, RELAXED, "scale", "temperature")
def relaxed_temperature(logits: Array, noise: Array, temperature: Array, dy: Array) -> Grads:
    """The temperature's gradient is divided by the number of samples."""
    y = relaxed(logits, noise, temperature)
    g = y * (dy - (y * dy).sum(-1, keepdims=True)) / temperature
    return g, g, -(g * (logits + noise)).sum() / temperature / y.shape[0]


@wrong(relaxed, RELAXED, "missing_term", "temperature")
def relaxed_noise(logits: Array, noise: Array, temperature: Array, dy: Array) -> Grads:
    """The noise is forgotten where the temperature is differentiated."""
    y = relaxed(logits, noise, temperature)
    g = y * (dy - (y * dy).sum(-1, keepdims=True)) / temperature
    return g, g, -(g * logits).sum() / temperature


@right(relaxed, RELAXED, ALL)
def relaxed_jacobian(logits: Array, noise: Array, temperature: Array, dy: Array) -> Grads:
    """By the whole Jacobian of the softmax."""
    y = relaxed(logits, noise, temperature)
    jacobian = y[:, :, None] * (jnp.eye(y.shape[1], dtype=y.dtype) - y[:, None, :])
    g = jnp.einsum("nij,ni->nj", jacobian, dy) / temperature
    return g, g, -(g * ((logits + noise) / temperature)).sum()


def gaussian_process(x: Array, y: Array, length: Array, noise: Array) -> Array:
    """The log marginal likelihood of a Gaussian process."""
    apart = ((x[:, None] - x[None]) ** 2).sum(-1)
    k = jnp.exp(-0.5 * apart / length**2) + noise * jnp.eye(x.shape[0], dtype=x.dtype)
    chol = jnp.linalg.cholesky(k)
    alpha = linalg.cho_solve((chol, True), y)
    return -0.5 * y @ alpha - jnp.log(jnp.diag(chol)).sum()


PROCESS = lambda d: (d.normal(6, 2), d.normal(6), d.uniform(), d.uniform())


@slips(
    gaussian_process,
    PROCESS,
    {
        "determinant": ("missing_term", "noise"),  # the log-determinant's part
        "length": ("missing_term", "length"),  # the length's third power has become its second
        "columns": ("missing_term", "x"),  # a point stands in a row and in a column
        "targets": ("scale", "y"),  # the half remains, though y stands there twice
        "trace": ("missing_term", "noise"),  # only the first variance counts
    },
)
def gaussian_process_back(
    x: Array, y: Array, length: Array, noise: Array, dy: Array, slip: str = ""
) -> Grads:
    n = x.shape[0]
    apart = x[:, None] - x[None]
    square = (apart**2).sum(-1)
    smooth_part = jnp.exp(-0.5 * square / length**2)
    k = smooth_part + noise * jnp.eye(n, dtype=x.dtype)
    inverse = jnp.linalg.inv(k)
    alpha = inverse @ y
    dk = jnp.outer(alpha, alpha)
    if slip != "determinant":
        dk = dk - inverse
    dk = 0.5 * dy * dk
    dnoise = dk[0, 0] if slip == "trace" else jnp.trace(dk)
    weighted = dk * smooth_part
    dlength = (weighted * square).sum() / (length**2 if slip == "length" else length**3)
    pull = weighted[..., None] * apart / length**2
    dx = -pull.sum(1)
    if slip != "columns":
        dx = dx + pull.sum(0)
    dtargets = -dy * alpha
    if slip == "targets":
        dtargets = dtargets / 2
    return dx, dtargets, dlength, dnoise


# ---- finance ----------------------------------------------------------------------------------------------


def call_price(spot: Array, strike: Array, vol: Array, rate: Array, time: Array) -> Array:
    """Black and Scholes: European calls."""
    root = vol * jnp.sqrt(time)
    d1 = (jnp.log(spot / strike) + (rate + 0.5 * vol**2) * time) / root
    return spot * stats.norm.cdf(d1) - strike * jnp.exp(-rate * time) * stats.norm.cdf(d1 - root)


CALLS = lambda d: (
    d.uniform(6, low=0.8, high=1.2),
    d.uniform(6, low=0.8, high=1.2),
    d.uniform(6, low=0.2, high=0.5),
    d.uniform(low=0.01, high=0.1),
    d.uniform(6),
)


@slips(
    call_price,
    CALLS,
    {
        "vega": ("missing_term", "vol"),  # the root of the time
        "rho": ("missing_term", "rate"),  # the time
        "theta": ("sign", "time"),  # theta's sign, for the interest alone
        "delta": ("wrong_residual", "spot"),  # d2 in place of d1
        "strike": ("missing_term", "strike"),  # the discount
        "rate": ("missing_batch_sum", "rate"),  # one rate for all calls: the first one's rho
    },
)
def call_greeks(
    spot: Array, strike: Array, vol: Array, rate: Array, time: Array, dy: Array, slip: str = ""
) -> Grads:
    root_time = jnp.sqrt(time)
    d1 = (jnp.log(spot / strike) + (rate + 0.5 * vol**2) * time) / (vol * root_time)
    d2 = d1 - vol * root_time
    density = jnp.exp(-0.5 * d1**2) / np.sqrt(2 * np.pi)
    n1, n2 = 0.5 * special.erfc(-d1 / np.sqrt(2)), 0.5 * special.erfc(-d2 / np.sqrt(2))
    discount = jnp.exp(-rate * time)
    delta = n2 if slip == "delta" else n1
    dstrike = -n2 if slip == "strike" else -discount * n2
    vega = spot * density
    if slip != "vega":
        vega = vega * root_time
    rho = strike * discount * n2
    interest = rate * rho
    if slip != "rho":
        rho = rho * time
    theta = 0.5 * spot * density * vol / root_time
    theta = theta - interest if slip == "theta" else theta + interest
    drate = dy * rho
    return dy * delta, dy * dstrike, dy * vega, drate[0] if slip == "rate" else drate.sum(), dy * theta


def variance(weights: Array, covariance: Array) -> Array:
    return weights @ covariance @ weights


PORTFOLIO = lambda d: (d.normal(5), d.spd(5))


@wrong(variance, PORTFOLIO, "missing_term", "weights", "scale")
def variance_half(weights: Array, covariance: Array, dy: Array) -> Grads:
    """The weights stand there twice."""
    return dy * covariance @ weights, dy * jnp.outer(weights, weights)


@wrong(variance, PORTFOLIO, "ignores_cotangent", "covariance")
def variance_cotangent(weights: Array, covariance: Array, dy: Array) -> Grads:
    """The cotangent is forgotten for the covariance."""
    return dy * (covariance + covariance.T) @ weights, jnp.outer(weights, weights)


@right(variance, PORTFOLIO, ALL)
def variance_sum(weights: Array, covariance: Array, dy: Array) -> Grads:
    both = jnp.einsum("i,ij->j", weights, covariance) + jnp.einsum("ij,j->i", covariance, weights)
    return both * dy, (weights * dy)[:, None] * weights


def present_value(cash: Array, rate: Array) -> Array:
    """Cash at the ends of years, discounted."""
    years = jnp.arange(1, cash.shape[1] + 1)
    return (cash / (1 + rate[:, None]) ** years).sum(1)


CASH = lambda d: (d.normal(4, 6), d.uniform(4, low=0.02, high=0.2))


@wrong(present_value, CASH, "missing_term", "rate")
def present_value_years(cash: Array, rate: Array, dy: Array) -> Grads:
    """The exponent does not come down."""
    years = jnp.arange(1, cash.shape[1] + 1)
    factor = (1 + rate[:, None]) ** -years
    return dy[:, None] * factor, -dy * (cash * factor).sum(1) / (1 + rate)


@wrong(present_value, CASH, "shift", "cash", "missing_term")
def present_value_begin(cash: Array, rate: Array, dy: Array) -> Grads:
    """Discounted to the beginning of the year."""
    years = jnp.arange(1, cash.shape[1] + 1)
    factor = (1 + rate[:, None]) ** -(years - 1.0)
    full = (1 + rate[:, None]) ** -(years + 1.0)
    return dy[:, None] * factor, -dy * (cash * years * full).sum(1)


@right(present_value, CASH)
def present_value_horner(cash: Array, rate: Array, dy: Array) -> Grads:
    """By Horner's rule for the polynomial and for its derivative, from the last year."""
    q = 1 / (1 + rate)
    value, slope = jnp.zeros_like(rate), jnp.zeros_like(rate)
    for t in reversed(range(cash.shape[1])):
        slope = slope * q + value
        value = value * q + cash[:, t]
    powers = jnp.cumprod(jnp.broadcast_to(q[:, None], cash.shape), axis=1)
    return dy[:, None] * powers, -dy * q * q * (value + q * slope)


def sharpe(returns: Array) -> Array:
    """The mean by the standard deviation, for every asset."""
    return returns.mean(0) / returns.std(0)


@wrong(sharpe, lambda d: (d.normal(7, 3) + 1,), "statistics_constant", "returns")
def sharpe_deviation(returns: Array, dy: Array) -> Array:
    """The deviation is held constant."""
    return jnp.broadcast_to(dy / returns.std(0) / returns.shape[0], returns.shape)


@wrong(sharpe, lambda d: (d.normal(7, 3) + 1,), "missing_term", "returns")
def sharpe_count(returns: Array, dy: Array) -> Array:
    """The count does not divide the deviation's part."""
    n = returns.shape[0]
    mean, std = returns.mean(0), returns.std(0)
    return dy / std / n - dy * mean * (returns - mean) / std**3


@right(sharpe, lambda d: (d.normal(7, 3) + 1,))
def sharpe_numpy(returns: Array, dy: Array) -> Array:
    r, g = np.asarray(returns), np.asarray(dy)
    std = r.std(0)
    z = (r - r.mean(0)) / std
    return jnp.asarray(g / std / len(r) * (1 - r.mean(0) / std * z), returns.dtype)


def log_returns(prices: Array) -> Array:
    return jnp.diff(jnp.log(prices), axis=0)


@wrong(log_returns, lambda d: (d.uniform(6, 3),), "border", "prices")
def log_returns_border(prices: Array, dy: Array) -> Array:
    """The first price gets nothing."""
    g = jnp.zeros_like(prices).at[1:].add(dy).at[1:-1].add(-dy[1:])
    return g / prices


@right(log_returns, lambda d: (d.uniform(6, 3),), ALL)
def log_returns_padded(prices: Array, dy: Array) -> Array:
    padded = jnp.pad(dy, ((1, 1), (0, 0)))
    return (padded[:-1] - padded[1:]) / prices


def shortfall(losses: Array) -> Array:
    """The mean of the four largest losses."""
    return lax.top_k(losses, 4)[0].mean(-1)


@wrong(shortfall, lambda d: (d.normal(3, 9),), "mask", "losses")
def shortfall_all(losses: Array, dy: Array) -> Array:
    """All losses are counted."""
    return jnp.broadcast_to(dy[:, None] / 4, losses.shape)


@right(shortfall, lambda d: (d.normal(3, 9),), ALL)
def shortfall_threshold(losses: Array, dy: Array) -> Array:
    least = jnp.sort(losses, axis=-1)[:, -4:][:, :1]
    return jnp.where(losses >= least, dy[:, None] * 0.25, 0)


# ---- physics ----------------------------------------------------------------------------------------------


def springs(x: Array, stiffness: Array, rest: Array, source: Array, target: Array) -> Array:
    """The energy of springs between points."""
    length = jnp.sqrt(((x[source] - x[target]) ** 2).sum(1))
    return 0.5 * (stiffness * (length - rest) ** 2).sum()


SPRINGS = lambda d: (
    d.normal(5, 3),
    d.uniform(6),
    d.uniform(6),
    np.array([0, 1, 2, 3, 4, 0], np.int32),
    np.array([1, 2, 3, 4, 0, 2], np.int32),
)


@slips(
    springs,
    SPRINGS,
    {
        "action": ("missing_term", "x"),  # no reaction: the other end is not pulled
        "unit": ("missing_term", "x"),  # the vector is not divided by its length
        "rest": ("sign", "rest"),  # the rest length's minus
        "square": ("scale", "stiffness"),  # the half
    },
)
def springs_back(
    x: Array, stiffness: Array, rest: Array, source: Array, target: Array, dy: Array, slip: str = ""
) -> Grads:
    apart = x[source] - x[target]
    length = jnp.linalg.norm(apart, axis=1)
    stretch = length - rest
    tension = dy * stiffness * stretch
    unit = apart if slip == "unit" else apart / length[:, None]
    force = tension[:, None] * unit
    dx = jnp.zeros_like(x).at[source].add(force)
    if slip != "action":
        dx = dx.at[target].add(-force)
    dstiffness = dy * stretch**2
    if slip != "square":
        dstiffness = dstiffness / 2
    return dx, dstiffness, tension if slip == "rest" else -tension, None, None


def lennard_jones(x: Array, epsilon: Array, sigma: Array) -> Array:
    """The energy of all pairs."""
    i, j = np.triu_indices(x.shape[0], 1)
    s6 = (sigma**2 / ((x[i] - x[j]) ** 2).sum(1)) ** 3
    return (4 * epsilon * (s6**2 - s6)).sum()


def _crystal(d: Draw) -> tuple[Any, ...]:
    corners = np.stack(np.meshgrid(range(2), range(3), range(1), indexing="ij"), -1).reshape(-1, 3)
    return 1.2 * corners + 0.1 * d.normal(6, 3), d.uniform(), d.uniform(low=0.9, high=1.1)


@slips(
    lennard_jones,
    _crystal,
    {
        "attraction": ("missing_term", "x"),  # the second term has the first one's factor
        "power": ("missing_term", "x"),  # divided by the distance, not by its square
        "sigma": ("missing_term", "sigma"),  # only the repulsion
    },
)
def lennard_jones_back(x: Array, epsilon: Array, sigma: Array, dy: Array, slip: str = "") -> Grads:
    apart = x[:, None] - x[None]
    square = (apart**2).sum(2)
    same = jnp.eye(x.shape[0], dtype=bool)
    square = jnp.where(same, 1, square)
    s6 = jnp.where(same, 0, (sigma**2 / square) ** 3)
    s12 = s6 * s6
    pull = 4 * epsilon * (6 * s6 - 12 * (s12 if slip != "attraction" else s12 / 2))
    scaled = pull / (jnp.sqrt(square) if slip == "power" else square)
    dx = dy * (scaled[..., None] * apart).sum(1)
    depsilon = dy * 2 * (s12 - s6).sum()
    bracket = 12 * s12 if slip == "sigma" else 12 * s12 - 6 * s6
    return dx, depsilon, dy * 2 * epsilon * bracket.sum() / sigma


def gravity(x: Array, mass: Array) -> Array:
    """Accelerations of many bodies, softened."""
    apart = x[None] - x[:, None]
    return (mass[None, :, None] * apart * ((apart**2).sum(2) + 0.1)[..., None] ** -1.5).sum(1)


GRAVITY = lambda d: (d.normal(5, 3), d.uniform(5))


@slips(
    gravity,
    GRAVITY,
    {
        "constant": ("missing_term", "x", "statistics_constant"),  # the distances are held constant
        "own": ("missing_term", "x"),  # a body's own place; only that of the others counts
        "factor": ("missing_term", "x"),  # the three of the power
        "mass": ("wrong_axis", "mass"),  # summed over those that attract
    },
    ALL,
)
def gravity_back(x: Array, mass: Array, dy: Array, slip: str = "") -> Grads:
    apart = x[None] - x[:, None]
    near = 1 / jnp.sqrt((apart**2).sum(2) + 0.1)
    cube = near**3
    toward = jnp.einsum("ik,ijk->ij", dy, apart)
    pair = cube * toward
    dmass = pair.sum(1 if slip == "mass" else 0)
    direct = cube[..., None] * dy[:, None]
    if slip != "constant":
        times = 1 if slip == "factor" else 3
        direct = direct - times * (near**5 * toward)[..., None] * apart
    direct = mass[None, :, None] * direct
    dx = direct.sum(0)
    if slip != "own":
        dx = dx - direct.sum(1)
    return dx, dmass


def heat(u: Array, conductivity: Array) -> Array:
    """A step of the heat equation; the ends of the rod are held."""
    flow = conductivity * (u[1:] - u[:-1])
    return u.at[1:-1].add(flow[1:] - flow[:-1])


HEAT = lambda d: (d.normal(9), d.uniform(8, low=0.1, high=0.3))


@wrong(heat, HEAT, "border", "u")
def heat_ends(u: Array, conductivity: Array, dy: Array) -> Grads:
    """As if the ends were free to move."""
    g = dy[:-1] - dy[1:]
    dflow = conductivity * g
    return dy + jnp.pad(dflow, (1, 0)) - jnp.pad(dflow, (0, 1)), g * (u[1:] - u[:-1])


@wrong(heat, HEAT, "sign", "conductivity")
def heat_flow(u: Array, conductivity: Array, dy: Array) -> Grads:
    """Heat flows uphill."""
    inner = dy.at[0].set(0).at[-1].set(0)
    g = inner[:-1] - inner[1:]
    dflow = conductivity * g
    return dy + jnp.pad(dflow, (1, 0)) - jnp.pad(dflow, (0, 1)), -g * (u[1:] - u[:-1])


@wrong(heat, HEAT, "missing_term", "u")
def heat_change(u: Array, conductivity: Array, dy: Array) -> Grads:
    """The old temperature itself is forgotten."""
    inner = dy.at[0].set(0).at[-1].set(0)
    g = inner[:-1] - inner[1:]
    dflow = conductivity * g
    return jnp.pad(dflow, (1, 0)) - jnp.pad(dflow, (0, 1)), g * (u[1:] - u[:-1])


@right(heat, HEAT, ALL)
def heat_matrix(u: Array, conductivity: Array, dy: Array) -> Grads:
    n = u.shape[0]
    slope = jnp.eye(n - 1, n, 1, dtype=u.dtype) - jnp.eye(n - 1, n, dtype=u.dtype)
    inside = jnp.ones(n, u.dtype).at[0].set(0).at[-1].set(0)
    back = slope @ (inside * dy)
    return dy - slope.T @ (conductivity * back), -back * (slope @ u)


def lap(u: Array) -> Array:
    """The second difference on a ring."""
    return jnp.roll(u, 1) + jnp.roll(u, -1) - 2 * u


def wave(u: Array, speed: Array) -> Array:
    """Six steps of the wave equation on a ring, from rest."""

    def step(carry: Any, _: Any) -> Any:
        before, now = carry
        return (now, 2 * now - before + speed * lap(now)), None

    return lax.scan(step, (u, u), None, length=6)[0][1]


WAVE = lambda d: (d.normal(8), d.uniform(8, low=0.1, high=0.3))


@slips(
    wave,
    WAVE,
    {
        "before": ("missing_term", "u"),  # the time before the last is dropped
        "inside": ("swapped", "u", "wrong_residual"),  # speed times the difference, not its adjoint
        "start": ("missing_term", "u"),  # the start stands in both carries
        "speed": ("wrong_residual", "speed"),  # the second difference is taken of the cotangent
    },
)
def wave_back(u: Array, speed: Array, dy: Array, slip: str = "") -> Grads:
    def forward(carry: Any, _: Any) -> Any:
        before, now = carry
        return (now, 2 * now - before + speed * lap(now)), now

    seen = lax.scan(forward, (u, u), None, length=6)[1]

    def step(carry: Any, now: Any) -> Any:
        dbefore, dnow, dspeed = carry
        dspeed = dspeed + (lap(dnow) * dnow if slip == "speed" else dnow * lap(now))
        spread = speed * lap(dnow) if slip == "inside" else lap(speed * dnow)
        back = 2 * dnow + spread if slip == "before" else dbefore + 2 * dnow + spread
        return (-dnow, back, dspeed), None

    zero = jnp.zeros_like(u)
    (first, second, dspeed), _ = lax.scan(step, (zero, dy, zero), seen, reverse=True)
    return second if slip == "start" else first + second, dspeed


def ising(spins: Array, coupling: Array, field: Array) -> Array:
    """The energy of a ring of soft spins."""
    return -(coupling * spins * jnp.roll(spins, -1)).sum() - (field * spins).sum()


ISING = lambda d: (d.normal(7), d.normal(7), d.normal(7))


@wrong(ising, ISING, "missing_term", "spins")
def ising_left(spins: Array, coupling: Array, field: Array, dy: Array) -> Grads:
    """Only one of the two neighbours."""
    after = jnp.roll(spins, -1)
    return -dy * (coupling * after + field), -dy * spins * after, -dy * spins


@wrong(ising, ISING, "wrong_residual", "spins")
def ising_bond(spins: Array, coupling: Array, field: Array, dy: Array) -> Grads:
    """The bond to the left is the left neighbour's, not the own one."""
    after, before = jnp.roll(spins, -1), jnp.roll(spins, 1)
    return -dy * (coupling * (after + before) + field), -dy * spins * after, -dy * spins


@wrong(ising, ISING, "shift", "coupling")
def ising_roll(spins: Array, coupling: Array, field: Array, dy: Array) -> Grads:
    """Rolled to the other side."""
    bonds = coupling * jnp.roll(spins, -1) + jnp.roll(coupling * spins, 1)
    return -dy * (bonds + field), -dy * spins * jnp.roll(spins, 1), -dy * spins


@right(ising, ISING, ALL)
def ising_indices(spins: Array, coupling: Array, field: Array, dy: Array) -> Grads:
    n = spins.shape[0]
    after, before = (np.arange(n) + 1).astype(np.int32) % n, (np.arange(n) - 1).astype(np.int32) % n
    bonds = coupling * spins[after] + coupling[before] * spins[before]
    return -(bonds + field) * dy, -(spins * spins[after]) * dy, -spins * dy


def pendulum(state: Array, gravity_: Array) -> Array:
    """Four steps of a pendulum by the leapfrog's halves."""

    def step(carry: Any, _: Any) -> Any:
        angle, speed = carry
        speed = speed - 0.1 * gravity_ * jnp.sin(angle)
        return (angle + 0.1 * speed, speed), None

    return jnp.stack(lax.scan(step, (state[0], state[1]), None, length=4)[0])


PENDULUM = lambda d: (d.normal(2, 5), d.uniform(low=2, high=4))


@slips(
    pendulum,
    PENDULUM,
    {
        "kick": ("missing_term", "state"),  # the angle's part in the kick
        "sine": ("wrong_residual", "state"),  # the sine in place of the cosine
        "drift": ("missing_term", "gravity_"),  # the drift does not carry back to the speed
        "sum": ("missing_batch_sum", "gravity_"),  # one gravity for all pendulums
    },
    ALL,
)
def pendulum_back(state: Array, gravity_: Array, dy: Array, slip: str = "") -> Grads:
    def forward(carry: Any, _: Any) -> Any:
        angle, speed = carry
        speed = speed - 0.1 * gravity_ * jnp.sin(angle)
        return (angle + 0.1 * speed, speed), angle

    angles = lax.scan(forward, (state[0], state[1]), None, length=4)[1]

    def step(carry: Any, angle: Any) -> Any:
        dangle, dspeed, dgravity = carry
        if slip != "drift":
            dspeed = dspeed + 0.1 * dangle
        dgravity = dgravity - 0.1 * dspeed * jnp.sin(angle)
        slope = jnp.sin(angle) if slip == "sine" else jnp.cos(angle)
        if slip != "kick":
            dangle = dangle - 0.1 * gravity_ * dspeed * slope
        return (dangle, dspeed, dgravity), None

    start = dy[0], dy[1], jnp.zeros_like(dy[0])
    dangle, dspeed, dgravity = lax.scan(step, start, angles, reverse=True)[0]
    return jnp.stack([dangle, dspeed]), dgravity[0] if slip == "sum" else dgravity.sum()


# ---- signals ----------------------------------------------------------------------------------------------


def autocorrelation(x: Array) -> Array:
    """Sums of x_t x_{t+k} for lags below four."""
    n = x.shape[-1]
    return jnp.stack([(x[..., : n - k] * x[..., k:]).sum(-1) for k in range(4)], axis=-1)


@wrong(autocorrelation, lambda d: (d.normal(3, 9),), "missing_term", "x")
def autocorrelation_ahead(x: Array, dy: Array) -> Array:
    """Only the later of the two factors is seen."""
    n = x.shape[-1]
    dx = jnp.zeros_like(x)
    for k in range(4):
        dx = dx.at[..., : n - k].add(dy[..., k : k + 1] * x[..., k:])
    return dx


@wrong(autocorrelation, lambda d: (d.normal(3, 9),), "border", "x", "extra_term")
def autocorrelation_ring(x: Array, dy: Array) -> Array:
    """The signal is taken for a ring."""
    dx = jnp.zeros_like(x)
    for k in range(4):
        dx = dx + dy[..., k : k + 1] * (jnp.roll(x, k, axis=-1) + jnp.roll(x, -k, axis=-1))
    return dx


@right(autocorrelation, lambda d: (d.normal(3, 9),), ALL)
def autocorrelation_toeplitz(x: Array, dy: Array) -> Array:
    """By the symmetric Toeplitz matrix of the cotangents."""
    n = x.shape[-1]
    places = np.arange(n, dtype=np.int32)
    lag = np.abs(np.subtract.outer(places, places))
    taps = jnp.where(lag < 4, dy[..., np.minimum(lag, 3)], 0)
    return jnp.einsum("bij,bj->bi", taps + taps * (lag == 0), x)


def power_spectrum(x: Array, window: Array) -> Array:
    return jnp.abs(jnp.fft.rfft(x * window, axis=-1)) ** 2


POWER = lambda d: (d.normal(3, 8), d.uniform(8))


def _spectrum_back(spectrum: Array, n: int) -> Array:
    """The adjoint of a real Fourier transform of n values."""
    full = jnp.zeros((*spectrum.shape[:-1], n), spectrum.dtype).at[..., : spectrum.shape[-1]].set(spectrum)
    return n * jnp.fft.ifft(full, axis=-1).real


@wrong(power_spectrum, POWER, "missing_term", "x")
def power_spectrum_window(x: Array, window: Array, dy: Array) -> Grads:
    """The window is forgotten for the signal."""
    g = 2 * _spectrum_back(dy * jnp.fft.rfft(x * window), x.shape[-1])
    return g, (g * x).sum(0)


@wrong(power_spectrum, POWER, "scale", "x")
def power_spectrum_length(x: Array, window: Array, dy: Array) -> Grads:
    """The inverse transform's division by the length is kept, for the signal."""
    n = x.shape[-1]
    g = 2 * _spectrum_back(dy * jnp.fft.rfft(x * window), n)
    return g * window / n, (g * x).sum(0)


@right(power_spectrum, POWER)
def power_spectrum_cosines(x: Array, window: Array, dy: Array) -> Grads:
    """With the transform's matrices of cosines and sines."""
    n = x.shape[-1]
    phase = 2 * np.pi * np.outer(np.arange(n), np.arange(n // 2 + 1)) / n
    c, s = jnp.asarray(np.cos(phase), x.dtype), jnp.asarray(np.sin(phase), x.dtype)
    framed = x * window
    g = 2 * ((dy * (framed @ c)) @ c.T + (dy * (framed @ s)) @ s.T)
    return g * window, (g * x).sum(0)


def fir(x: Array, taps: Array) -> Array:
    """A filter, where it overlaps the signal wholly."""
    return jax.vmap(lambda row: jnp.convolve(row, taps, mode="valid"))(x)


FIR = lambda d: (d.normal(3, 9), d.normal(4))


@wrong(fir, FIR, "flip", "taps")
def fir_flip(x: Array, taps: Array, dy: Array) -> Grads:
    """The taps' gradient is that of a correlation."""
    n = dy.shape[1]
    dtaps = jnp.stack([(x[:, k : k + n] * dy).sum() for k in range(taps.shape[0])])
    return jax.vmap(lambda row: jnp.convolve(row, taps[::-1]))(dy), dtaps


@wrong(fir, FIR, "flip", "x")
def fir_adjoint(x: Array, taps: Array, dy: Array) -> Grads:
    """The adjoint of a filter runs the other way; this one does not."""
    n = dy.shape[1]
    dtaps = jnp.stack([(x[:, k : k + n] * dy).sum() for k in range(taps.shape[0])])[::-1]
    return jax.vmap(lambda row: jnp.convolve(row, taps))(dy), dtaps


@right(fir, FIR)
def fir_fourier(x: Array, taps: Array, dy: Array) -> Grads:
    """By the Fourier transform, with zeros behind."""
    n, k = x.shape[1], taps.shape[0]
    size = n + k
    spectrum = jnp.fft.rfft(jnp.pad(dy, ((0, 0), (k - 1, 0))), size)
    dx = jnp.fft.irfft(spectrum * jnp.conj(jnp.fft.rfft(taps, size)), size)[:, :n]
    dtaps = jnp.fft.irfft(spectrum * jnp.conj(jnp.fft.rfft(x, size)), size)[:, :k].sum(0)
    return dx, dtaps


def emphasis(x: Array, a: Array) -> Array:
    """x_t − a x_{t−1}; the first value is kept."""
    return x.at[:, 1:].add(-a * x[:, :-1])


EMPHASIS = lambda d: (d.normal(3, 8), d.uniform())


@wrong(emphasis, EMPHASIS, "shift", "x", "flip")
def emphasis_shift(x: Array, a: Array, dy: Array) -> Grads:
    """The cotangents are delayed like the signal, not advanced."""
    return dy.at[:, 1:].add(-a * dy[:, :-1]), -(dy[:, 1:] * x[:, :-1]).sum()


@wrong(emphasis, EMPHASIS, "missing_batch_sum", "a")
def emphasis_sum(x: Array, a: Array, dy: Array) -> Grads:
    """Only the first signal counts."""
    return dy.at[:, :-1].add(-a * dy[:, 1:]), -(dy[0, 1:] * x[0, :-1]).sum()


@right(emphasis, EMPHASIS, ALL)
def emphasis_padded(x: Array, a: Array, dy: Array) -> Grads:
    ahead = jnp.pad(dy[:, 1:], ((0, 0), (0, 1)))
    behind = jnp.pad(x[:, :-1], ((0, 0), (1, 0)))
    return dy - a * ahead, -jnp.vdot(dy, behind)


FRAMES = (np.arange(4, dtype=np.int32) * 2)[:, None] + np.arange(4, dtype=np.int32)


def framed(x: Array, window: Array) -> Array:
    """Overlapping frames of a signal."""
    return x[FRAMES] * window


FRAMED = lambda d: (d.normal(10), d.uniform(4))


@wrong(framed, FRAMED, "missing_term", "x")
def framed_set(x: Array, window: Array, dy: Array) -> Grads:
    """Where frames overlap, the last one wins."""
    return jnp.zeros_like(x).at[FRAMES].set(dy * window), (dy * x[FRAMES]).sum(0)


@wrong(framed, lambda d: (d.normal(10), d.uniform(4)), "wrong_axis", "window")
def framed_axis(x: Array, window: Array, dy: Array) -> Grads:
    """Summed within a frame, not over the frames; there are four of both."""
    return jnp.zeros_like(x).at[FRAMES].add(dy * window), (dy * x[FRAMES]).sum(1)


@right(framed, FRAMED, ALL)
def framed_halves(x: Array, window: Array, dy: Array) -> Grads:
    """Overlap and add, by halves of frames."""
    g = (dy * window).reshape(4, 2, 2)
    dx = jnp.pad(g[:, 0].reshape(-1), (0, 2)) + jnp.pad(g[:, 1].reshape(-1), (2, 0))
    return dx, jnp.einsum("ft,ft->t", dy, x[FRAMES])


def haar(x: Array) -> Array:
    """Sums and differences of neighbours."""
    even, odd = x[:, 0::2], x[:, 1::2]
    return jnp.concatenate([even + odd, even - odd], axis=1) / 2**0.5


@wrong(haar, lambda d: (d.normal(3, 8),), "sign", "x")
def haar_sign(x: Array, dy: Array) -> Array:
    """The difference's minus is lost."""
    low, high = jnp.split(dy / 2**0.5, 2, axis=1)
    return jnp.stack([low + high, low + high], axis=2).reshape(x.shape)


@wrong(haar, lambda d: (d.normal(3, 8),), "transpose", "x", "wrong_axis")
def haar_order(x: Array, dy: Array) -> Array:
    """The even places come first, then the odd ones: not interleaved."""
    low, high = jnp.split(dy / 2**0.5, 2, axis=1)
    return jnp.concatenate([low + high, low - high], axis=1)


@right(haar, lambda d: (d.normal(3, 8),), ALL)
def haar_butterfly(x: Array, dy: Array) -> Array:
    low, high = jnp.split(dy * 0.5**0.5, 2, axis=1)
    return jnp.zeros_like(x).at[:, ::2].set(low + high).at[:, 1::2].set(low - high)


# ---- optimisation -----------------------------------------------------------------------------------------


def solve(a: Array, b: Array) -> Array:
    return jnp.linalg.solve(a, b)


SOLVE = lambda d: (d.matrix(4), d.normal(4, 3))


@wrong(solve, SOLVE, "transpose", "b")
def solve_transpose(a: Array, b: Array, dy: Array) -> Grads:
    """The adjoint system has the transposed matrix."""
    db = jnp.linalg.solve(a, dy)
    return -db @ jnp.linalg.solve(a, b).T, db


@wrong(solve, SOLVE, "sign", "a")
def solve_sign(a: Array, b: Array, dy: Array) -> Grads:
    """The minus of the implicit derivative is lost."""
    db = jnp.linalg.solve(a.T, dy)
    return db @ jnp.linalg.solve(a, b).T, db


@wrong(solve, SOLVE, "wrong_residual", "a")
def solve_right_side(a: Array, b: Array, dy: Array) -> Grads:
    """The right side in place of the solution."""
    db = jnp.linalg.solve(a.T, dy)
    return -db @ b.T, db


@right(solve, SOLVE)
def solve_factors(a: Array, b: Array, dy: Array) -> Grads:
    factors = linalg.lu_factor(a)
    db = linalg.lu_solve(factors, dy, trans=1)
    return -jnp.einsum("ik,jk->ij", db, linalg.lu_solve(factors, b)), db


def ridge(x: Array, y: Array, penalty: Array) -> Array:
    """The weights of a ridge regression."""
    return jnp.linalg.solve(x.T @ x + penalty * jnp.eye(x.shape[1], dtype=x.dtype), x.T @ y)


RIDGE = lambda d: (d.normal(8, 3), d.normal(8), d.uniform())


@slips(
    ridge,
    RIDGE,
    {
        "moment": ("missing_term", "x"),  # x in the right side is forgotten
        "gram": ("missing_term", "x"),  # x stands twice in its Gram matrix
        "residual": ("wrong_residual", "x"),  # the targets in place of the residuals
        "penalty": ("sign", "penalty"),  # the inverse's minus
    },
)
def ridge_back(x: Array, y: Array, penalty: Array, dy: Array, slip: str = "") -> Grads:
    gram = x.T @ x + penalty * jnp.eye(x.shape[1], dtype=x.dtype)
    moment = x.T @ y
    weights = jnp.linalg.solve(gram, moment)
    adjoint = jnp.linalg.solve(gram, dy)
    residual = y if slip == "residual" else y - x @ weights
    along = x @ adjoint
    dx = jnp.outer(residual, adjoint)
    if slip == "moment":
        dx = -jnp.outer(x @ weights, adjoint)
    if slip != "gram":
        dx = dx - jnp.outer(along, weights)
    dpenalty = adjoint @ weights
    return dx, along, dpenalty if slip == "penalty" else -dpenalty


def sinkhorn(cost: Array, a: Array, b: Array) -> Array:
    """Three of Sinkhorn's iterations: a plan between two distributions."""
    k = jnp.exp(-cost)

    def step(v: Any, _: Any) -> Any:
        u = a / (k @ v)
        return b / (k.T @ u), u

    v, us = lax.scan(step, jnp.ones_like(b), None, length=3)
    return us[-1][:, None] * k * v


SINKHORN = lambda d: (d.uniform(4, 5), d.uniform(4), d.uniform(5))


@slips(
    sinkhorn,
    SINKHORN,
    {
        "kernel": ("missing_term", "cost"),  # the kernel in the plan; not that in the iterations
        "plan": ("missing_term", "cost"),  # only the kernel of the plan itself
        "rows": ("missing_term", "cost"),  # the kernel in the rows' update
        "square": ("wrong_residual", "b"),  # the wrong quotient
        "cost": ("sign", "cost"),  # the minus of the kernel's exponent
    },
)
def sinkhorn_back(cost: Array, a: Array, b: Array, dy: Array, slip: str = "") -> Grads:
    k = jnp.exp(-cost)

    def forward(v: Any, _: Any) -> Any:
        q = k @ v
        u = a / q
        s = k.T @ u
        return b / s, (v, q, u, s)

    v, kept = lax.scan(forward, jnp.ones_like(b), None, length=3)
    u = kept[2][-1]
    weighted = dy * k
    dk = jnp.outer(u, v) * dy
    du, dv = weighted @ v, u @ weighted

    def step(carry: Any, now: Any) -> Any:
        du, dv, dk, da, db = carry
        before, q, u, s = now
        db = db + dv / (b if slip == "square" else s)
        ds = -dv * b / s**2
        dk = dk + jnp.outer(u, ds)
        du = du + k @ ds
        da = da + du / q
        dq = -du * a / q**2
        if slip != "rows":
            dk = dk + jnp.outer(dq, before)
        return (0 * du, k.T @ dq, dk, da, db), None

    start = du, dv, 0 * dk if slip == "kernel" else dk, 0 * a, 0 * b
    (_, _, total, da, db), _ = lax.scan(step, start, kept, reverse=True)
    if slip == "plan":
        total = dk
    dcost = total * k
    return dcost if slip == "cost" else -dcost, da, db


def barrier(x: Array, a: Array, b: Array, c: Array) -> Array:
    """A linear cost with logarithmic barriers."""
    return c @ x - 0.1 * jnp.log(b - a @ x).sum()


BARRIER = lambda d: (0.2 * d.normal(3), d.normal(5, 3), d.uniform(5, low=3, high=4), d.normal(3))


@wrong(barrier, BARRIER, "sign", "x")
def barrier_sign(x: Array, a: Array, b: Array, c: Array, dy: Array) -> Grads:
    """The slack's inner derivative is −a."""
    pull = 0.1 * dy / (b - a @ x)
    return dy * c - pull @ a, pull[:, None] * x, -pull, dy * x


@wrong(barrier, BARRIER, "sign", "b")
def barrier_slack(x: Array, a: Array, b: Array, c: Array, dy: Array) -> Grads:
    """A larger bound would cost more."""
    pull = 0.1 * dy / (b - a @ x)
    return dy * c + pull @ a, pull[:, None] * x, pull, dy * x


@right(barrier, BARRIER)
def barrier_dual(x: Array, a: Array, b: Array, c: Array, dy: Array) -> Grads:
    dual = dy / (10 * (b - a @ x))
    return c * dy + a.T @ dual, jnp.outer(dual, x), -dual, x * dy


def newton_root(x: Array) -> Array:
    """Square roots by Newton's iteration, until they stand still."""

    def go_on(state: Any) -> Any:
        y, before, count = state
        return jnp.any(jnp.abs(y - before) > 1e-12 * y) & (count < 60)

    def improve(state: Any) -> Any:
        y, _, count = state
        return (y + x / y) / 2, y, count + 1

    return lax.while_loop(go_on, improve, (x, 2 * x, 0))[0]


@wrong(newton_root, lambda d: (d.uniform(4, low=0.5, high=3),), "scale", "x")
def newton_root_half(x: Array, dy: Array) -> Array:
    """The half is lost."""
    return dy / newton_root(x)


@wrong(newton_root, lambda d: (d.uniform(4, low=0.5, high=3),), "wrong_residual", "x")
def newton_root_argument(x: Array, dy: Array) -> Array:
    """Divided by the argument in place of its root."""
    return dy / (2 * x)


@right(newton_root, lambda d: (d.uniform(4, low=0.5, high=3),))
def newton_root_implicit(x: Array, dy: Array) -> Array:
    return 0.5 * dy / newton_root(x)


def kepler(mean: Array, eccentricity: Array) -> Array:
    """Kepler's equation E − e sin E = M, by Newton's iteration."""

    def improve(state: Any) -> Any:
        e, count = state
        off = e - eccentricity * jnp.sin(e) - mean
        return e - off / (1 - eccentricity * jnp.cos(e)), count + 1

    return lax.while_loop(lambda state: state[1] < 12, improve, (mean, 0))[0]


KEPLER = lambda d: (d.uniform(5), d.uniform(5, low=0.1, high=0.5))


@wrong(kepler, KEPLER, "missing_term", "eccentricity")
def kepler_denominator(mean: Array, eccentricity: Array, dy: Array) -> Grads:
    """The implicit derivative's denominator is forgotten."""
    e = kepler(mean, eccentricity)
    return dy / (1 - eccentricity * jnp.cos(e)), dy * jnp.sin(e)


@right(kepler, KEPLER)
def kepler_implicit(mean: Array, eccentricity: Array, dy: Array) -> Grads:
    e = kepler(mean, eccentricity)
    g = dy / (1 - eccentricity * jnp.cos(e))
    return g, g * jnp.sin(e)


def shrink(x: Array, threshold: Array) -> Array:
    """The proximal map of the absolute value."""
    return jnp.sign(x) * jnp.maximum(jnp.abs(x) - threshold, 0)


SHRINK = lambda d: (2 * d.normal(5, 4), d.uniform(4, low=0.4, high=0.9))


@wrong(shrink, SHRINK, "missing_term", "threshold")
def shrink_sign(x: Array, threshold: Array, dy: Array) -> Grads:
    """The sign is left out."""
    far = jnp.abs(x) > threshold
    return dy * far, -(dy * far).sum(0)


@wrong(shrink, SHRINK, "mask", "threshold")
def shrink_mask(x: Array, threshold: Array, dy: Array) -> Grads:
    """What is below the threshold counts, too."""
    far = jnp.abs(x) > threshold
    return dy * far, -(dy * jnp.sign(x)).sum(0)


@right(shrink, SHRINK, ALL)
def shrink_steps(x: Array, threshold: Array, dy: Array) -> Grads:
    above, below = (x > threshold).astype(x.dtype), (x < -threshold).astype(x.dtype)
    return dy * (above + below), (dy * below).sum(0) - (dy * above).sum(0)


def sparsemax(x: Array) -> Array:
    """Projected onto the simplex."""
    order = -jnp.sort(-x, axis=-1)
    total = jnp.cumsum(order, axis=-1)
    ranks = jnp.arange(1, x.shape[-1] + 1)
    size = (1 + ranks * order > total).sum(-1, keepdims=True)
    tau = (jnp.take_along_axis(total, size - 1, axis=-1) - 1) / size
    return jnp.maximum(x - tau, 0)


@wrong(sparsemax, lambda d: (d.normal(5, 6),), "statistics_constant", "x", "missing_term")
def sparsemax_threshold(x: Array, dy: Array) -> Array:
    """The threshold is held constant."""
    return dy * (sparsemax(x) > 0)


@right(sparsemax, lambda d: (d.normal(5, 6),))
def sparsemax_support(x: Array, dy: Array) -> Array:
    inside = (sparsemax(x) > 0).astype(x.dtype)
    return inside * (dy - (dy * inside).sum(-1, keepdims=True) / inside.sum(-1, keepdims=True))


# ---- recommendation ---------------------------------------------------------------------------------------


def ratings(users: Array, items: Array, bias: Array, user: Array, item: Array) -> Array:
    return (users[user] * items[item]).sum(1) + bias[item]


RATINGS = lambda d: (d.normal(4, 3), d.normal(5, 3), d.normal(5), d.below(4, 9), d.below(5, 9))


@wrong(ratings, RATINGS, "missing_term", "users")
def ratings_set(users: Array, items: Array, bias: Array, user: Array, item: Array, dy: Array) -> Grads:
    """A user's later rating overwrites the earlier one."""
    g = dy[:, None]
    dusers = jnp.zeros_like(users).at[user].set(g * items[item])
    ditems = jnp.zeros_like(items).at[item].add(g * users[user])
    return dusers, ditems, jnp.zeros_like(bias).at[item].add(dy), None, None


@wrong(
    ratings,
    lambda d: (d.normal(5, 3), d.normal(5, 3), d.normal(5), d.below(5, 9), (d.below(5, 9) + 1) % 5),
    "swapped",
    "users",
)
def ratings_swapped(users: Array, items: Array, bias: Array, user: Array, item: Array, dy: Array) -> Grads:
    """The gradients of users and items are returned in each other's place; there are as many of both."""
    g = dy[:, None]
    dusers = jnp.zeros_like(users).at[user].add(g * items[item])
    ditems = jnp.zeros_like(items).at[item].add(g * users[user])
    return ditems, dusers, jnp.zeros_like(bias).at[item].add(dy), None, None


@right(ratings, RATINGS, ALL)
def ratings_one_hot(users: Array, items: Array, bias: Array, user: Array, item: Array, dy: Array) -> Grads:
    who = jax.nn.one_hot(user, users.shape[0], dtype=users.dtype)
    what = jax.nn.one_hot(item, items.shape[0], dtype=items.dtype)
    counts = jnp.einsum("nu,n,ni->ui", who, dy, what)
    return counts @ items, counts.T @ users, what.T @ dy, None, None


def bpr(user: Array, better: Array, worse: Array) -> Array:
    """Bayesian personalised ranking: pairs of items, one preferred."""
    return -jax.nn.log_sigmoid((user * (better - worse)).sum(1))


BPR = lambda d: (d.normal(6, 3), d.normal(6, 3), d.normal(6, 3))


@wrong(bpr, BPR, "sign", "worse")
def bpr_sign(user: Array, better: Array, worse: Array, dy: Array) -> Grads:
    """Both items are drawn to the user."""
    g = -(dy * jax.nn.sigmoid(-(user * (better - worse)).sum(1)))[:, None]
    return g * (better - worse), g * user, g * user


@wrong(bpr, BPR, "wrong_residual", "user", "sign")
def bpr_sigmoid(user: Array, better: Array, worse: Array, dy: Array) -> Grads:
    """The sigmoid of the margin in place of that of its opposite."""
    margin = (user * (better - worse)).sum(1)
    g = -(dy * jax.nn.sigmoid(margin))[:, None]
    return g * (better - worse), g * user, -g * user


@right(bpr, BPR, ALL)
def bpr_exponential(user: Array, better: Array, worse: Array, dy: Array) -> Grads:
    margin = (user * better).sum(1) - (user * worse).sum(1)
    g = (dy / (1 + jnp.exp(margin)))[:, None]
    return g * worse - g * better, -(g * user), g * user


def machine(x: Array, v: Array) -> Array:
    """The pairwise part of a factorisation machine."""
    return 0.5 * ((x @ v) ** 2 - x**2 @ v**2).sum(1)


MACHINE = lambda d: (d.normal(5, 4), d.normal(4, 3))


@wrong(machine, MACHINE, "missing_term", "v")
def machine_pairs(x: Array, v: Array, dy: Array) -> Grads:
    """The pairs of a feature with itself are not taken out, for v."""
    g = dy[:, None] * (x @ v)
    return g @ v.T - dy[:, None] * x * (v**2).sum(1), x.T @ g


@wrong(machine, MACHINE, "missing_term", "x")
def machine_square(x: Array, v: Array, dy: Array) -> Grads:
    """The own pairs' factors are not squared, for x."""
    g = dy[:, None] * (x @ v)
    return g @ v.T - dy[:, None] * x * v.sum(1), x.T @ g - v * (dy @ x**2)[:, None]


@right(machine, MACHINE, ALL)
def machine_gram(x: Array, v: Array, dy: Array) -> Grads:
    gram = v @ v.T
    gram = gram * (1 - jnp.eye(gram.shape[0], dtype=v.dtype))
    weighted = jnp.einsum("n,ni,nj->ij", dy, x, x)
    weighted = weighted * (1 - jnp.eye(gram.shape[0], dtype=v.dtype))
    return dy[:, None] * (x @ gram), weighted @ v


def bag(table: Array, ids: Array, keep: Array) -> Array:
    """Means of the embeddings of lists, without their padding."""
    rows = jnp.where(keep[..., None], table[ids], 0)
    return rows.sum(1) / keep.sum(1)[:, None]


def _bags(d: Draw) -> tuple[Any, ...]:
    keep = d.bits(4, 5)
    keep[:, 0] = True
    return d.normal(7, 3), d.below(7, 4, 5), keep


@wrong(bag, _bags, "mask", "table")
def bag_padding(table: Array, ids: Array, keep: Array, dy: Array) -> Grads:
    """The padding gets its share, too."""
    g = jnp.broadcast_to((dy / keep.sum(1)[:, None])[:, None], (*ids.shape, dy.shape[1]))
    return jnp.zeros_like(table).at[ids].add(g), None, None


@wrong(bag, _bags, "wrong_residual", "table")
def bag_length(table: Array, ids: Array, keep: Array, dy: Array) -> Grads:
    """Divided by the length with padding."""
    g = jnp.where(keep[..., None], (dy / ids.shape[1])[:, None], 0)
    return jnp.zeros_like(table).at[ids].add(g), None, None


@right(bag, _bags, ALL)
def bag_counts(table: Array, ids: Array, keep: Array, dy: Array) -> Grads:
    """By a matrix that counts how often a row of the table is in a list."""
    hot = jax.nn.one_hot(ids, table.shape[0], dtype=table.dtype)
    counts = (hot * keep[..., None]).sum(1)
    return (counts / counts.sum(1, keepdims=True)).T @ dy, None, None


def two_towers(user: Array, item: Array, temperature: Array) -> Array:
    """A softmax over the items of the batch; each user's own is the right one."""
    logits = user @ item.T / temperature
    return -jnp.diag(jax.nn.log_softmax(logits))


TOWERS = lambda d: (d.normal(5, 3), d.normal(5, 3), d.uniform())


@slips(
    two_towers,
    TOWERS,
    {
        "transpose": ("transpose", "item"),  # the probabilities are not transposed for the items
        "own": ("missing_term", "item"),  # the right item is not drawn nearer
        "temperature": ("missing_term", "temperature"),  # the temperature is not squared
    },
    ALL,
)
def two_towers_back(user: Array, item: Array, temperature: Array, dy: Array, slip: str = "") -> Grads:
    logits = user @ item.T / temperature
    p = jax.nn.softmax(logits)
    eye = jnp.eye(p.shape[0], dtype=p.dtype)
    g = dy[:, None] * (p - eye) / temperature
    seen = dy[:, None] * p / temperature if slip == "own" else g
    ditem = (seen if slip == "transpose" else seen.T) @ user
    dtemperature = -(g * logits).sum()
    if slip == "temperature":
        dtemperature = dtemperature * temperature
    return g @ item, ditem, dtemperature


# ---- attention --------------------------------------------------------------------------------------------


def grouped(q: Array, k: Array, v: Array) -> Array:
    """Causal attention; two queries share a key and a value. q is (heads, time, d), k and v have fewer."""
    keys, values = jnp.repeat(k, 2, axis=0), jnp.repeat(v, 2, axis=0)
    scores = jnp.einsum("htd,hsd->hts", q, keys) / q.shape[-1] ** 0.5
    scores = jnp.where(jnp.tril(jnp.ones(scores.shape[1:], bool)), scores, -jnp.inf)
    return jax.nn.softmax(scores) @ values


GROUPED = lambda d: (d.normal(4, 5, 3), d.normal(2, 5, 3), d.normal(2, 5, 3))


@slips(
    grouped,
    GROUPED,
    {
        "first": ("missing_term", "k", "missing_batch_sum"),  # only the first query of a group
        "tile": ("wrong_axis", "v", "swapped"),  # the groups are taken for the inner axis: tile, not repeat
        "scale": ("scale", "q"),  # the root of the width
        "softmax": ("missing_term", "q", "statistics_constant"),  # the mean in the softmax's derivative
        "weights": ("transpose", "v"),  # the weights are not transposed
    },
    ALL,
)
def grouped_back(q: Array, k: Array, v: Array, dy: Array, slip: str = "") -> Grads:
    heads, time, width = q.shape
    root = width**-0.5
    grouped_q = q.reshape(heads // 2, 2, time, width)
    scores = jnp.einsum("ghtd,gsd->ghts", grouped_q, k) * root
    seen = np.tril(np.ones((time, time), bool))
    e = jnp.where(seen, jnp.exp(scores - jnp.where(seen, scores, -jnp.inf).max(-1, keepdims=True)), 0)
    p = e / e.sum(-1, keepdims=True)
    g = dy.reshape(heads // 2, 2, time, width)
    each = jnp.einsum("ghts,ghsd->ghtd" if slip == "weights" else "ghts,ghtd->ghsd", p, g)
    dv = each.reshape(2, heads // 2, time, width).sum(0) if slip == "tile" else each.sum(1)
    dp = jnp.einsum("ghtd,gsd->ghts", g, v)
    mean = 0 if slip == "softmax" else (p * dp).sum(-1, keepdims=True)
    ds = p * (dp - mean)
    dq = jnp.einsum("ghts,gsd->ghtd", ds, k)
    if slip != "scale":
        dq = dq * root
    dk = jnp.einsum("ghts,ghtd->ghsd", ds * root, grouped_q)
    return dq.reshape(q.shape), dk[:, 0] if slip == "first" else dk.sum(1), dv


def fused(x: Array, w: Array) -> Array:
    """Self-attention from one matrix for queries, keys and values."""
    q, k, v = jnp.split(x @ w, 3, axis=1)
    return jax.nn.softmax(q @ k.T / 2) @ v


FUSED = lambda d: (d.normal(5, 3), d.normal(3, 12))
FUSED_SQUARE = lambda d: (d.normal(4, 4), d.normal(4, 12))


@slips(
    fused,
    FUSED,
    {
        "order": ("swapped", "w"),  # queries and keys are glued together the wrong way round
        "value": ("missing_term", "x"),  # the values' part of x
        "axis": ("wrong_axis", "w"),  # the softmax's mean runs over the queries
    },
    ALL,
)
def fused_back(x: Array, w: Array, dy: Array, slip: str = "") -> Grads:
    q, k, v = jnp.split(x @ w, 3, axis=1)
    p = jax.nn.softmax(q @ k.T / 2)
    dv = p.T @ dy
    dp = dy @ v.T
    mean = (p * dp).sum(0 if slip == "axis" else 1, keepdims=True)
    ds = p * (dp - mean) / 2
    dq = ds @ k
    dk = ds.T @ q
    parts = [dk, dq, dv] if slip == "order" else [dq, dk, dv]
    g = jnp.concatenate(parts, axis=1)
    seen = jnp.concatenate([dq, dk, 0 * dv], axis=1) if slip == "value" else g
    return seen @ w.T, x.T @ g


@wrong(fused, FUSED_SQUARE, "transpose", "w")
def fused_scores(x: Array, w: Array, dy: Array) -> Grads:
    """The scores' cotangent is not transposed for the keys; all sizes are equal."""
    q, k, v = jnp.split(x @ w, 3, axis=1)
    p = jax.nn.softmax(q @ k.T / 2)
    dp = dy @ v.T
    ds = p * (dp - (p * dp).sum(1, keepdims=True)) / 2
    g = jnp.concatenate([ds @ k, ds @ q, p.T @ dy], axis=1)
    return g @ w.T, x.T @ g


@wrong(fused, FUSED_SQUARE, "transpose", "x")
def fused_weights(x: Array, w: Array, dy: Array) -> Grads:
    """The values' rows of the matrix, square by chance, are not transposed."""
    q, k, v = jnp.split(x @ w, 3, axis=1)
    wq, wk, wv = jnp.split(w, 3, axis=1)
    p = jax.nn.softmax(q @ k.T / 2)
    dp = dy @ v.T
    ds = p * (dp - (p * dp).sum(1, keepdims=True)) / 2
    dq, dk, dv = ds @ k, ds.T @ q, p.T @ dy
    return dq @ wq.T + dk @ wk.T + dv @ wv, x.T @ jnp.concatenate([dq, dk, dv], axis=1)


def rope(x: Array, angle: Array) -> Array:
    """Rotary positions: halves of a head are turned by position times angle."""
    phase = jnp.arange(x.shape[0], dtype=x.dtype)[:, None] * angle
    a, b = jnp.split(x, 2, axis=1)
    c, s = jnp.cos(phase), jnp.sin(phase)
    return jnp.concatenate([a * c - b * s, a * s + b * c], axis=1)


ROPE = lambda d: (d.normal(6, 8), d.uniform(4, low=0.1, high=0.9))


@wrong(rope, ROPE, "transpose", "x", "sign")
def rope_forward(x: Array, angle: Array, dy: Array) -> Grads:
    """Turned forward once more."""
    position = jnp.arange(x.shape[0], dtype=x.dtype)[:, None]
    a, b = jnp.split(rope(x, angle), 2, axis=1)
    da, db = jnp.split(dy, 2, axis=1)
    return rope(dy, angle), (position * (db * a - da * b)).sum(0)


@wrong(rope, ROPE, "missing_term", "angle")
def rope_position(x: Array, angle: Array, dy: Array) -> Grads:
    """The angle's factor, the position, is left out."""
    a, b = jnp.split(rope(x, angle), 2, axis=1)
    da, db = jnp.split(dy, 2, axis=1)
    return rope(dy, -angle), (db * a - da * b).sum(0)


@right(rope, ROPE)
def rope_inverse(x: Array, angle: Array, dy: Array) -> Grads:
    position = jnp.arange(x.shape[0], dtype=x.dtype)
    da, db = jnp.split(rope(dy, -angle), 2, axis=1)
    a, b = jnp.split(x, 2, axis=1)
    return jnp.concatenate([da, db], axis=1), position @ (db * a - da * b)


def sloped(q: Array, k: Array, v: Array, slope: Array) -> Array:
    """Attention with a slope by distance, causal."""
    ago = jnp.arange(q.shape[0])[:, None] - jnp.arange(k.shape[0])
    scores = jnp.where(ago >= 0, q @ k.T - slope * ago, -jnp.inf)
    return jax.nn.softmax(scores) @ v


SLOPED = lambda d: (d.normal(6, 3), d.normal(6, 3), d.normal(6, 4), d.uniform())


@wrong(sloped, SLOPED, "sign", "slope")
def sloped_sign(q: Array, k: Array, v: Array, slope: Array, dy: Array) -> Grads:
    """The slope is subtracted; its gradient is added."""
    ago = jnp.arange(q.shape[0])[:, None] - jnp.arange(k.shape[0])
    p = jax.nn.softmax(jnp.where(ago >= 0, q @ k.T - slope * ago, -jnp.inf))
    dp = dy @ v.T
    ds = p * (dp - (p * dp).sum(1, keepdims=True))
    return ds @ k, ds.T @ q, p.T @ dy, (ds * ago).sum()


@wrong(sloped, SLOPED, "mask", "k")
def sloped_mask(q: Array, k: Array, v: Array, slope: Array, dy: Array) -> Grads:
    """The backward pass has no causal mask."""
    ago = jnp.arange(q.shape[0])[:, None] - jnp.arange(k.shape[0])
    p = jax.nn.softmax(q @ k.T - slope * ago)
    dp = dy @ v.T
    ds = p * (dp - (p * dp).sum(1, keepdims=True))
    return ds @ k, ds.T @ q, p.T @ dy, -(ds * ago).sum()


@right(sloped, SLOPED)
def sloped_rows(q: Array, k: Array, v: Array, slope: Array, dy: Array) -> Grads:
    """Row after row, each with the keys that it sees only."""
    dq, dk, dv, dslope = jnp.zeros_like(q), jnp.zeros_like(k), jnp.zeros_like(v), jnp.zeros_like(slope)
    for t in range(q.shape[0]):
        ago = jnp.arange(t, -1, -1, dtype=q.dtype)
        e = jnp.exp(k[: t + 1] @ q[t] - slope * ago)
        p = e / e.sum()
        dp = v[: t + 1] @ dy[t]
        ds = p * (dp - p @ dp)
        dq = dq.at[t].set(ds @ k[: t + 1])
        dk = dk.at[: t + 1].add(ds[:, None] * q[t])
        dv = dv.at[: t + 1].add(p[:, None] * dy[t])
        dslope = dslope - ds @ ago
    return dq, dk, dv, dslope


def capped(scores: Array, v: Array) -> Array:
    """Attention weights of scores with a soft cap."""
    return jax.nn.softmax(5 * jnp.tanh(scores / 5)) @ v


CAPPED = lambda d: (4 * d.normal(5, 6), d.normal(6, 3))


@wrong(capped, CAPPED, "missing_term", "scores")
def capped_slope(scores: Array, v: Array, dy: Array) -> Grads:
    """The cap's own slope is left out."""
    p = jax.nn.softmax(5 * jnp.tanh(scores / 5))
    dp = dy @ v.T
    return p * (dp - (p * dp).sum(1, keepdims=True)), p.T @ dy


@right(capped, CAPPED)
def capped_cosh(scores: Array, v: Array, dy: Array) -> Grads:
    p = jax.nn.softmax(5 * jnp.tanh(scores / 5))
    out = p @ v
    ds = p * (dy @ v.T - (dy * out).sum(1, keepdims=True))
    return ds / jnp.cosh(scores / 5) ** 2, p.T @ dy


def linear_attention(q: Array, k: Array, v: Array) -> Array:
    """Causal attention without a softmax, as a recurrence of the state k vᵀ."""

    def step(state: Any, now: Any) -> Any:
        q_t, k_t, v_t = now
        state = state + jnp.outer(k_t, v_t)
        return state, q_t @ state

    return lax.scan(step, jnp.zeros((k.shape[1], v.shape[1]), k.dtype), (q, k, v))[1]


LINEAR = lambda d: (d.normal(6, 3), d.normal(6, 3), d.normal(6, 4))


@slips(
    linear_attention,
    LINEAR,
    {
        "before": ("wrong_residual", "q"),  # the state before the step
        "late": ("missing_term", "k"),  # the own step's cotangent is added too late
        "swap": ("swapped", "k"),  # the state's cotangent meets its own key in place of the value
    },
    ALL,
)
def linear_attention_back(q: Array, k: Array, v: Array, dy: Array, slip: str = "") -> Grads:
    def forward(state: Any, now: Any) -> Any:
        k_t, v_t = now
        new = state + k_t[:, None] * v_t
        return new, (state, new)

    _, (before, after) = lax.scan(forward, jnp.zeros((k.shape[1], v.shape[1]), k.dtype), (k, v))
    dq = jnp.einsum("tij,tj->ti", before if slip == "before" else after, dy)

    def step(ds: Any, now: Any) -> Any:
        g, q_t, k_t, v_t = now
        new = ds + jnp.outer(q_t, g)
        used = ds if slip == "late" else new
        if slip == "swap":
            return new, (used @ (used.T @ k_t), k_t @ used)
        return new, (used @ v_t, k_t @ used)

    _, (dk, dv) = lax.scan(step, jnp.zeros_like(before[0]), (dy, q, k, v), reverse=True)
    return dq, dk, dv


@right(linear_attention, LINEAR, ALL)
def linear_attention_masked(q: Array, k: Array, v: Array, dy: Array) -> Grads:
    """By the masked matrix of all products."""
    scores, back = jnp.tril(q @ k.T), jnp.tril(dy @ v.T)
    return back @ k, back.T @ q, scores.T @ dy


def swiglu(x: Array, gate: Array, up: Array) -> Array:
    return jax.nn.silu(x @ gate) * (x @ up)


SWIGLU = lambda d: (d.normal(5, 3), d.normal(3, 4), d.normal(3, 4))


@wrong(swiglu, SWIGLU, "missing_term", "gate")
def swiglu_sigmoid(x: Array, gate: Array, up: Array, dy: Array) -> Grads:
    """The swish's derivative is only its sigmoid."""
    z, u = x @ gate, x @ up
    s = jax.nn.sigmoid(z)
    dz, du = dy * u * s, dy * z * s
    return dz @ gate.T + du @ up.T, x.T @ dz, x.T @ du


@wrong(swiglu, SWIGLU, "missing_term", "x")
def swiglu_path(x: Array, gate: Array, up: Array, dy: Array) -> Grads:
    """x reaches the product on two ways; the gate's is left out."""
    z, u = x @ gate, x @ up
    s = jax.nn.sigmoid(z)
    dz, du = dy * u * s * (1 + z * (1 - s)), dy * z * s
    return du @ up.T, x.T @ dz, x.T @ du


@right(swiglu, SWIGLU, ALL)
def swiglu_joined(x: Array, gate: Array, up: Array, dy: Array) -> Grads:
    """Both matrices as one."""
    z, u = x @ gate, x @ up
    s = 1 / (1 + jnp.exp(-z))
    g = jnp.concatenate([dy * u * (s + z * s * (1 - s)), dy * z * s], axis=1)
    both = x.T @ g
    return g @ jnp.concatenate([gate, up], axis=1).T, both[:, :4], both[:, 4:]


# ---- convolution ------------------------------------------------------------------------------------------


def depthwise(x: Array, w: Array) -> Any:
    """Every channel of (time, channels) has its own causal filter (taps, channels)."""
    taps = w.shape[0]
    padded = jnp.pad(x, ((taps - 1, 0), (0, 0)))
    return sum(padded[k : k + x.shape[0]] * w[k] for k in range(taps))


DEPTHWISE = lambda d: (d.normal(8, 3), d.normal(4, 3))


@wrong(depthwise, DEPTHWISE, "flip", "w")
def depthwise_taps(x: Array, w: Array, dy: Array) -> Grads:
    """The taps are counted from the other end."""
    taps, n = w.shape[0], x.shape[0]
    padded = jnp.pad(x, ((taps - 1, 0), (0, 0)))
    dw = jnp.stack([(padded[taps - 1 - k : taps - 1 - k + n] * dy).sum(0) for k in range(taps)])
    ahead = jnp.pad(dy, ((0, taps - 1), (0, 0)))
    return sum(ahead[taps - 1 - k : taps - 1 - k + n] * w[k] for k in range(taps)), dw


@wrong(depthwise, DEPTHWISE, "shift", "x")
def depthwise_padding(x: Array, w: Array, dy: Array) -> Grads:
    """The cotangents are padded on both sides, as if the filter were not causal."""
    taps, n = w.shape[0], x.shape[0]
    padded = jnp.pad(x, ((taps - 1, 0), (0, 0)))
    dw = jnp.stack([(padded[k : k + n] * dy).sum(0) for k in range(taps)])
    around = jnp.pad(dy, ((1, taps - 2), (0, 0)))
    return sum(around[taps - 1 - k : taps - 1 - k + n] * w[k] for k in range(taps)), dw


@wrong(depthwise, lambda d: (d.normal(4, 4), d.normal(4, 4)), "wrong_axis", "w")
def depthwise_axis(x: Array, w: Array, dy: Array) -> Grads:
    """The taps' gradient sums over the channels; all sizes are equal."""
    taps, n = w.shape[0], x.shape[0]
    padded = jnp.pad(x, ((taps - 1, 0), (0, 0)))
    dw = jnp.stack([(padded[k : k + n] * dy).sum(1) for k in range(taps)])
    ahead = jnp.pad(dy, ((0, taps - 1), (0, 0)))
    return sum(ahead[taps - 1 - k : taps - 1 - k + n] * w[k] for k in range(taps)), dw


@right(depthwise, DEPTHWISE, ALL)
def depthwise_toeplitz(x: Array, w: Array, dy: Array) -> Grads:
    """With the triangular matrices that the filters are."""
    taps, n = w.shape[0], x.shape[0]
    shifts = np.stack([np.eye(n, k=k - taps + 1, dtype=np.float32) for k in range(taps)])
    dx = jnp.einsum("kts,kc,tc->sc", shifts, w, dy).astype(x.dtype)
    return dx, jnp.einsum("kts,sc,tc->kc", shifts, x, dy).astype(w.dtype)


def grow(x: Array, w: Array) -> Array:
    """A transposed convolution with stride 2: (time, in) and (taps, in, out) to (2·time + taps − 2, out)."""
    n, taps = x.shape[0], w.shape[0]
    y = jnp.zeros((2 * n + taps - 2, w.shape[2]), x.dtype)
    for k in range(taps):
        y = y.at[k : k + 2 * n - 1 : 2].add(x @ w[k])
    return y


GROW = lambda d: (d.normal(5, 3), d.normal(4, 3, 2))


@wrong(grow, GROW, "shift", "w")
def grow_stride(x: Array, w: Array, dy: Array) -> Grads:
    """The second half of the taps reads the cotangents of the first."""
    n, taps = x.shape[0], w.shape[0]
    parts = [dy[k : k + 2 * n - 1 : 2] for k in range(taps)]
    dx = sum(part @ w[k].T for k, part in enumerate(parts))
    return dx, jnp.stack([x.T @ parts[k % 2] for k in range(taps)])


@wrong(grow, GROW, "flip", "x")
def grow_flip(x: Array, w: Array, dy: Array) -> Grads:
    """The taps are turned round for x, as in a convolution's adjoint."""
    n, taps = x.shape[0], w.shape[0]
    parts = [dy[k : k + 2 * n - 1 : 2] for k in range(taps)]
    dx = sum(part @ w[taps - 1 - k].T for k, part in enumerate(parts))
    return dx, jnp.stack([x.T @ part for part in parts])


@right(grow, GROW, ALL)
def grow_conv(x: Array, w: Array, dy: Array) -> Grads:
    """A strided convolution of the cotangents, as XLA has it."""
    n, taps = x.shape[0], w.shape[0]
    dx = lax.conv_general_dilated(
        dy[None], w.transpose(0, 2, 1), (2,), "VALID", dimension_numbers=("NWC", "WIO", "NWC")
    )[0]
    windows = dy[(2 * np.arange(n, dtype=np.int32))[:, None] + np.arange(taps, dtype=np.int32)]
    return dx, jnp.einsum("ti,tko->kio", x, windows)


def enlarge(x: Array) -> Array:
    """Nearest neighbours, twice as high and three times as wide."""
    return jnp.repeat(jnp.repeat(x, 2, axis=0), 3, axis=1)


@wrong(enlarge, lambda d: (d.normal(4, 5),), "missing_term", "x")
def enlarge_first(x: Array, dy: Array) -> Array:
    """Only the first pixel of each block."""
    return dy[::2, ::3]


@wrong(enlarge, lambda d: (d.normal(4, 5),), "scale", "x")
def enlarge_mean(x: Array, dy: Array) -> Array:
    """The mean of each block in place of the sum."""
    return dy.reshape(x.shape[0], 2, x.shape[1], 3).mean((1, 3))


@wrong(enlarge, lambda d: (d.normal(6, 6),), "wrong_axis", "x", "swapped")
def enlarge_axes(x: Array, dy: Array) -> Array:
    """Blocks of three by two, not of two by three: rows and columns are mixed up."""
    n, m = x.shape
    return dy.reshape(2, n, m, 3).sum((0, 3))


@right(enlarge, lambda d: (d.normal(4, 5),), ALL)
def enlarge_matrices(x: Array, dy: Array) -> Array:
    rows = jnp.kron(jnp.eye(x.shape[0], dtype=x.dtype), jnp.ones((1, 2), x.dtype))
    columns = jnp.kron(jnp.eye(x.shape[1], dtype=x.dtype), jnp.ones((1, 3), x.dtype))
    return rows @ dy @ columns.T


def pooled(x: Array) -> Array:
    """Means of windows of three, two apart; the windows at the ends are smaller."""
    total = lax.reduce_window(x, 0.0, lax.add, (1, 3), (1, 2), [(0, 0), (1, 1)])
    count = lax.reduce_window(jnp.ones_like(x), 0.0, lax.add, (1, 3), (1, 2), [(0, 0), (1, 1)])
    return total / count


@wrong(pooled, lambda d: (d.normal(2, 9),), "border", "x")
def pooled_ends(x: Array, dy: Array) -> Array:
    """Three are divided by at the ends, too."""
    g = dy / 3
    dx = jnp.zeros_like(x).at[:, ::2].add(g)
    dx = dx.at[:, 1::2].add(g[:, :-1])
    return dx.at[:, 1::2].add(g[:, 1:])


@wrong(pooled, lambda d: (d.normal(2, 9),), "missing_term", "x")
def pooled_overlap(x: Array, dy: Array) -> Array:
    """A place between two windows belongs to the left one only."""
    count = jnp.full(dy.shape[1], 3, x.dtype).at[0].set(2).at[-1].set(2)
    g = dy / count
    return jnp.zeros_like(x).at[:, ::2].add(g).at[:, 1::2].add(g[:, :-1])


@right(pooled, lambda d: (d.normal(2, 9),))
def pooled_matrix(x: Array, dy: Array) -> Array:
    places, centres = np.arange(x.shape[1]), 2 * np.arange(dy.shape[1])
    inside = np.abs(places[None] - centres[:, None]) <= 1
    return dy @ jnp.asarray(inside / inside.sum(1, keepdims=True), x.dtype)


def max_pooled(x: Array) -> Array:
    return x.reshape(x.shape[0], -1, 3).max(-1)


@wrong(max_pooled, lambda d: (d.normal(3, 12),), "mask", "x")
def max_pooled_mean(x: Array, dy: Array) -> Array:
    """All places of a window get the cotangent."""
    return jnp.repeat(dy, 3, axis=1)


def _tied(d: Draw) -> tuple[Any, ...]:
    return (d.below(4, 3, 12).astype(float),)


@right(max_pooled, _tied, ALL)
def max_pooled_first(x: Array, dy: Array) -> Array:
    """At ties the first place gets all."""
    windows = x.reshape(x.shape[0], -1, 3)
    hot = jax.nn.one_hot(windows.argmax(-1), 3, dtype=x.dtype)
    return (hot * dy[..., None]).reshape(x.shape)


def shuffled(x: Array) -> Array:
    """Channels to pixels: (h, w, 4c) to (2h, 2w, c)."""
    h, w, c = x.shape
    return x.reshape(h, w, 2, 2, c // 4).transpose(0, 2, 1, 3, 4).reshape(2 * h, 2 * w, c // 4)


@wrong(shuffled, lambda d: (d.normal(3, 4, 8),), "swapped", "x", "transpose")
def shuffled_axes(x: Array, dy: Array) -> Array:
    """Rows and columns within a block are exchanged."""
    h, w, c = x.shape
    return dy.reshape(h, 2, w, 2, c // 4).transpose(0, 2, 3, 1, 4).reshape(x.shape)


@right(shuffled, lambda d: (d.normal(3, 4, 8),), ALL)
def shuffled_strides(x: Array, dy: Array) -> Array:
    return jnp.concatenate([dy[i::2, j::2] for i in range(2) for j in range(2)], axis=-1)


def conv2d(x: Array, w: Array) -> Array:
    """(height, width, in) and (3, 3, in, out), zeros around."""
    return lax.conv_general_dilated(
        x[None], w, (1, 1), [(1, 1), (1, 1)], dimension_numbers=("NHWC", "HWIO", "NHWC")
    )[0]


CONV = lambda d: (d.normal(5, 6, 2), d.normal(3, 3, 2, 4))


@slips(
    conv2d,
    CONV,
    {
        "flip": ("flip", "x"),  # the filter is not turned round
        "border": ("border", "w"),  # the rows at the border are left out
        "transpose": ("transpose", "w"),  # rows and columns of the filter
    },
)
def conv2d_back(x: Array, w: Array, dy: Array, slip: str = "") -> Grads:
    height, width = x.shape[:2]
    padded = jnp.pad(x, ((1, 1), (1, 1), (0, 0)))
    around = jnp.pad(dy, ((1, 1), (1, 1), (0, 0)))
    dx = jnp.zeros_like(x)
    rows = []
    for i in range(3):
        row = []
        for j in range(3):
            a, b = (i, j) if slip == "flip" else (2 - i, 2 - j)
            dx = dx + around[a : a + height, b : b + width] @ w[i, j].T
            seen = padded[i : i + height, j : j + width]
            g = dy
            if slip == "border":
                seen, g = seen[1:-1], g[1:-1]
            row.append(jnp.einsum("hwi,hwo->io", seen, g))
        rows.append(jnp.stack(row))
    dw = jnp.stack(rows, axis=1 if slip == "transpose" else 0)
    return dx, dw


# ---- norms ------------------------------------------------------------------------------------------------


def group_norm(x: Array, gain: Array, bias: Array) -> Array:
    """(rows, channels) in groups of three channels."""
    groups = x.reshape(x.shape[0], -1, 3)
    centred = groups - groups.mean(-1, keepdims=True)
    y = centred / jnp.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    return y.reshape(x.shape) * gain + bias


GROUP_NORM = lambda d: (d.normal(4, 6), d.normal(6), d.normal(6))


@slips(
    group_norm,
    GROUP_NORM,
    {
        "variance": ("statistics_constant", "x"),  # the variance is held constant
        "mean": ("statistics_constant", "x"),  # the mean is held constant
        "whole": ("wrong_axis", "x"),  # the means run over all channels
        "raw": ("wrong_residual", "gain"),  # x in place of its normalised values
        "gain": ("missing_term", "x"),  # the gain is left out
        "row": ("missing_batch_sum", "bias"),  # only the first row
    },
    ALL,
)
def group_norm_back(x: Array, gain: Array, bias: Array, dy: Array, slip: str = "") -> Grads:
    groups = x.reshape(x.shape[0], -1, 3)
    scale = 1 / jnp.sqrt(groups.var(-1, keepdims=True) + 1e-5)
    y = (groups - groups.mean(-1, keepdims=True)) * scale
    seen = x if slip == "raw" else y.reshape(x.shape)
    dgain = (dy * seen).sum(0)
    dbias = dy[0] if slip == "row" else dy.sum(0)
    g = (dy if slip == "gain" else dy * gain).reshape(groups.shape)
    axes = (-2, -1) if slip == "whole" else -1
    mean = g.mean(axes, keepdims=True)
    along = y * (g * y).mean(axes, keepdims=True)
    dx = g
    if slip != "mean":
        dx = dx - mean
    if slip != "variance":
        dx = dx - along
    return (dx * scale).reshape(x.shape), dgain, dbias


def rms_norm(x: Array, gain: Array) -> Array:
    return x * lax.rsqrt((x**2).mean(-1, keepdims=True) + 1e-6) * (1 + gain)


RMS = lambda d: (d.normal(5, 4), d.normal(4))


@wrong(rms_norm, RMS, "missing_term", "x")
def rms_norm_one(x: Array, gain: Array, dy: Array) -> Grads:
    """The gain is one plus the parameter; here it is the parameter."""
    r = lax.rsqrt((x**2).mean(-1, keepdims=True) + 1e-6)
    y = x * r
    g = dy * gain
    return r * (g - y * (g * y).mean(-1, keepdims=True)), (dy * y).sum(0)


@wrong(rms_norm, RMS, "wrong_residual", "x")
def rms_norm_power(x: Array, gain: Array, dy: Array) -> Grads:
    """x stands where the normalised x is needed, once of twice."""
    r = lax.rsqrt((x**2).mean(-1, keepdims=True) + 1e-6)
    g = dy * (1 + gain)
    return r * (g - x * r * (g * x).mean(-1, keepdims=True)), (dy * x * r).sum(0)


@right(rms_norm, RMS, ALL)
def rms_norm_einsum(x: Array, gain: Array, dy: Array) -> Grads:
    square = jnp.einsum("nd,nd->n", x, x)[:, None] / x.shape[1] + 1e-6
    root = jnp.sqrt(square)
    g = dy + dy * gain
    inner = jnp.einsum("nd,nd->n", g, x)[:, None] / x.shape[1]
    return g / root - x * (inner / (square * root)), jnp.einsum("nd,nd->d", dy, x / root)


def weight_norm(v: Array, g: Array, x: Array) -> Array:
    """A layer whose rows of weights have lengths of their own."""
    return x @ (g[:, None] * v / jnp.linalg.norm(v, axis=1, keepdims=True)).T


WEIGHT_NORM = lambda d: (d.normal(4, 3), d.normal(4), d.normal(5, 3))


@wrong(weight_norm, WEIGHT_NORM, "statistics_constant", "v", "missing_term")
def weight_norm_length(v: Array, g: Array, x: Array, dy: Array) -> Grads:
    """The length is held constant."""
    length = jnp.linalg.norm(v, axis=1, keepdims=True)
    dw = dy.T @ x
    return g[:, None] * dw / length, (dw * v / length).sum(1), dy @ (g[:, None] * v / length)


@right(weight_norm, WEIGHT_NORM, ALL)
def weight_norm_tangent(v: Array, g: Array, x: Array, dy: Array) -> Grads:
    length = jnp.sqrt(jnp.einsum("oi,oi->o", v, v))[:, None]
    unit = v / length
    dw = dy.T @ x
    dg = (dw * unit).sum(1)
    return g[:, None] / length * (dw - dg[:, None] * unit), dg, (dy * g) @ unit


def batch_norm(x: Array) -> Array:
    return (x - x.mean(0)) / x.std(0)


@wrong(batch_norm, lambda d: (d.normal(5, 5),), "wrong_axis", "x")
def batch_norm_axis(x: Array, dy: Array) -> Array:
    """Means over the channels; there are as many as samples."""
    y = batch_norm(x)
    along = y * (dy * y).mean(1, keepdims=True)
    return (dy - dy.mean(1, keepdims=True) - along) / x.std(0)


@wrong(batch_norm, lambda d: (d.normal(7, 4),), "scale", "x")
def batch_norm_unbiased(x: Array, dy: Array) -> Array:
    """The deviation's divisor is the count less one."""
    y = batch_norm(x)
    return (dy - dy.mean(0) - y * (dy * y).mean(0)) / x.std(0, ddof=1)


@right(batch_norm, lambda d: (d.normal(7, 4),))
def batch_norm_sums(x: Array, dy: Array) -> Array:
    """By sums of the raw values."""
    n = x.shape[0]
    mean = x.sum(0) / n
    centred = x - mean
    variance_ = (centred * centred).sum(0) / n
    first, second = dy.sum(0), (dy * centred).sum(0)
    return (dy - first / n - centred * (second / (n * variance_))) / jnp.sqrt(variance_)


def spectral(w: Array, u: Array, v: Array) -> Array:
    """A matrix by its largest singular value; u and v are estimates that are held constant."""
    u, v = lax.stop_gradient(u), lax.stop_gradient(v)
    return w / (u @ w @ v)


SPECTRAL = lambda d: (d.matrix(4)[:, :3], d.uniform(4), d.uniform(3))


@wrong(spectral, SPECTRAL, "extra_term", "u")
def spectral_vectors(w: Array, u: Array, v: Array, dy: Array) -> Grads:
    """u is differentiated, though it is held constant."""
    sigma = u @ w @ v
    along = -(dy * w).sum() / sigma**2
    return dy / sigma + along * jnp.outer(u, v), along * (w @ v), jnp.zeros_like(v)


@wrong(spectral, SPECTRAL, "statistics_constant", "w", "missing_term")
def spectral_value(w: Array, u: Array, v: Array, dy: Array) -> Grads:
    """The singular value is held constant."""
    return dy / (u @ w @ v), jnp.zeros_like(u), jnp.zeros_like(v)


@right(spectral, SPECTRAL)
def spectral_quotient(w: Array, u: Array, v: Array, dy: Array) -> Grads:
    sigma = jnp.einsum("i,ij,j->", u, w, v)
    y = w / sigma
    return (dy - jnp.vdot(dy, y) * jnp.outer(u, v)) / sigma, jnp.zeros_like(u), jnp.zeros_like(v)


# ---- losses -----------------------------------------------------------------------------------------------


def focal(logits: Array, labels: Array) -> Array:
    """With γ = 2."""
    log_p = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1)[:, 0]
    return -((1 - jnp.exp(log_p)) ** 2) * log_p


FOCAL = lambda d: (d.normal(6, 4), d.below(4, 6))


@slips(
    focal,
    FOCAL,
    {
        "weight": ("statistics_constant", "logits", "missing_term"),  # the weight is held constant
        "power": ("missing_term", "logits"),  # the weight's exponent
        "chain": ("missing_term", "logits"),  # the probability's own derivative by its logarithm
    },
    ALL,
)
def focal_back(logits: Array, labels: Array, dy: Array, slip: str = "") -> Grads:
    p = jax.nn.softmax(logits)
    hot = jax.nn.one_hot(labels, logits.shape[1], dtype=logits.dtype)
    right_p = (p * hot).sum(1)
    log_p = jnp.log(right_p)
    miss = 1 - right_p
    weight = 1 if slip == "power" else 2
    dlog = -(miss**2)
    if slip != "weight":
        inner = miss * log_p
        if slip != "chain":
            inner = inner * right_p
        dlog = dlog + weight * inner
    return (dy * dlog)[:, None] * (hot - p), None


def triplet(anchor: Array, near: Array, far: Array) -> Array:
    """Squared distances, with a margin."""
    return jax.nn.relu(((anchor - near) ** 2).sum(1) - ((anchor - far) ** 2).sum(1) + 0.5)


TRIPLET = lambda d: (d.normal(7, 3), d.normal(7, 3), d.normal(7, 3))


@wrong(triplet, TRIPLET, "mask", "far")
def triplet_margin(anchor: Array, near: Array, far: Array, dy: Array) -> Grads:
    """For one of three, triplets beyond the margin count, too."""
    active = triplet(anchor, near, far) > 0
    g = (2 * dy * active)[:, None]
    return g * (far - near), g * (near - anchor), 2 * dy[:, None] * (anchor - far)


@wrong(triplet, TRIPLET, "missing_term", "anchor")
def triplet_anchor(anchor: Array, near: Array, far: Array, dy: Array) -> Grads:
    """The anchor is only drawn to the near one, not pushed from the far one."""
    g = (2 * dy * (triplet(anchor, near, far) > 0))[:, None]
    return g * (anchor - near), g * (near - anchor), g * (anchor - far)


@right(triplet, TRIPLET, ALL)
def triplet_difference(anchor: Array, near: Array, far: Array, dy: Array) -> Grads:
    """Whether a triplet is active, by one inner product."""
    margin = ((far - near) * (2 * anchor - near - far)).sum(1) + 0.5
    g = jnp.where(margin > 0, 2 * dy, 0)[:, None]
    return g * (far - near), -g * (anchor - near), g * (anchor - far)


def smoothed(logits: Array, labels: Array) -> Array:
    """Cross-entropy with labels smoothed by a tenth."""
    log_p = jax.nn.log_softmax(logits)
    hot = jax.nn.one_hot(labels, logits.shape[1], dtype=logits.dtype)
    return -((0.9 * hot + 0.1 / logits.shape[1]) * log_p).sum(1)


SMOOTHED = lambda d: (d.normal(6, 5), d.below(5, 6))


@wrong(smoothed, SMOOTHED, "missing_term", "logits")
def smoothed_uniform(logits: Array, labels: Array, dy: Array) -> Grads:
    """The uniform part of the labels is forgotten."""
    hot = jax.nn.one_hot(labels, logits.shape[1], dtype=logits.dtype)
    return dy[:, None] * (jax.nn.softmax(logits) - 0.9 * hot), None


@wrong(smoothed, SMOOTHED, "wrong_axis", "logits")
def smoothed_axis(logits: Array, labels: Array, dy: Array) -> Grads:
    """The softmax runs over the samples."""
    hot = jax.nn.one_hot(labels, logits.shape[1], dtype=logits.dtype)
    target = 0.9 * hot + 0.1 / logits.shape[1]
    return dy[:, None] * (jax.nn.softmax(logits, axis=0) - target), None


@wrong(smoothed, SMOOTHED, "ignores_cotangent", "logits")
def smoothed_mean(logits: Array, labels: Array, dy: Array) -> Grads:
    """As if the loss were the sum of all."""
    hot = jax.nn.one_hot(labels, logits.shape[1], dtype=logits.dtype)
    return jax.nn.softmax(logits) - (0.9 * hot + 0.1 / logits.shape[1]), None


@right(smoothed, SMOOTHED, ALL)
def smoothed_scatter(logits: Array, labels: Array, dy: Array) -> Grads:
    e = jnp.exp(logits - logits.max(1, keepdims=True))
    g = dy[:, None] * (e / e.sum(1, keepdims=True) - 0.1 / logits.shape[1])
    return g.at[np.arange(logits.shape[0], dtype=np.int32), labels].add(-0.9 * dy), None


def huber(x: Array, y: Array) -> Array:
    off = x - y
    return jnp.where(jnp.abs(off) < 1, 0.5 * off**2, jnp.abs(off) - 0.5).mean()


HUBER = lambda d: (1.5 * d.normal(4, 5), 1.5 * d.normal(4, 5))


@wrong(huber, HUBER, "mask", "x")
def huber_square(x: Array, y: Array, dy: Array) -> Grads:
    """The square's slope everywhere, for x."""
    off = (x - y) / x.size
    return dy * off, -dy * jnp.clip(x - y, -1, 1) / x.size


@wrong(huber, HUBER, "scale", "y")
def huber_rows(x: Array, y: Array, dy: Array) -> Grads:
    """The mean is over all, not over the rows."""
    g = dy * jnp.clip(x - y, -1, 1)
    return g / x.size, -g / x.shape[0]


@right(huber, HUBER, ALL)
def huber_clip(x: Array, y: Array, dy: Array) -> Grads:
    g = dy / x.size * jnp.clip(x - y, -1, 1)
    return g, -g


def dice(p: Array, t: Array) -> Array:
    """One less the overlap of soft masks."""
    return 1 - (2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1)


DICE = lambda d: (d.uniform(4, 5, low=0, high=1), d.uniform(4, 5, low=0, high=1))


@wrong(dice, DICE, "missing_term", "p")
def dice_union(p: Array, t: Array, dy: Array) -> Grads:
    """The sum of the masks below the line is held constant, for p."""
    union = p.sum() + t.sum() + 1
    overlap = 2 * (p * t).sum() + 1
    return -dy * 2 * t / union, -dy * (2 * p / union - overlap / union**2)


@wrong(dice, DICE, "sign", "t")
def dice_sign(p: Array, t: Array, dy: Array) -> Grads:
    """The quotient rule's minus is a plus."""
    union = p.sum() + t.sum() + 1
    overlap = 2 * (p * t).sum() + 1
    return -dy * (2 * t / union - overlap / union**2), -dy * (2 * p / union + overlap / union**2)


@right(dice, DICE)
def dice_score(p: Array, t: Array, dy: Array) -> Grads:
    union = 1 + p.sum() + t.sum()
    score = (1 + 2 * jnp.vdot(p, t)) / union
    return dy / union * (score - 2 * t), dy / union * (score - 2 * p)


def distilled(student_logits: Array, teacher_logits: Array) -> Array:
    """Cross-entropy from a frozen teacher, at a temperature of three."""
    target = lax.stop_gradient(jax.nn.softmax(teacher_logits / 3))
    return -9 * (target * jax.nn.log_softmax(student_logits / 3)).sum(1).mean()


DISTILLED = lambda d: (d.normal(5, 4), d.normal(5, 4))


@wrong(distilled, DISTILLED, "scale", "student_logits")
def distilled_temperature(student_logits: Array, teacher_logits: Array, dy: Array) -> Grads:
    """The temperature's own derivative is forgotten."""
    off = jax.nn.softmax(student_logits / 3) - jax.nn.softmax(teacher_logits / 3)
    return 9 * dy * off / off.shape[0], jnp.zeros_like(teacher_logits)


@wrong(distilled, DISTILLED, "extra_term", "teacher_logits")
def distilled_teacher(student_logits: Array, teacher_logits: Array, dy: Array) -> Grads:
    """The teacher learns, too."""
    p, target = jax.nn.softmax(student_logits / 3), jax.nn.softmax(teacher_logits / 3)
    log_p = jnp.log(p)
    g = 3 * dy / p.shape[0]
    teacher = -g * target * (log_p - (target * log_p).sum(1, keepdims=True))
    return g * (p - target), teacher


@right(distilled, DISTILLED, ALL)
def distilled_closed(student_logits: Array, teacher_logits: Array, dy: Array) -> Grads:
    e, f = jnp.exp(student_logits / 3), jnp.exp(teacher_logits / 3)
    off = e / e.sum(1, keepdims=True) - f / f.sum(1, keepdims=True)
    return dy * 3 / off.shape[0] * off, jnp.zeros_like(teacher_logits)


def quantile(x: Array, y: Array) -> Array:
    """The pinball loss of the nine tenths' quantile."""
    off = y - x
    return jnp.maximum(0.9 * off, -0.1 * off)


QUANTILE = lambda d: (d.normal(4, 5), d.normal(5))


@wrong(quantile, QUANTILE, "swapped", "x", "mask")
def quantile_sides(x: Array, y: Array, dy: Array) -> Grads:
    """The two sides are exchanged, for x."""
    under = y > x
    return -dy * jnp.where(under, -0.1, 0.9), (dy * jnp.where(under, 0.9, -0.1)).sum(0)


@wrong(quantile, QUANTILE, "unbroadcast", "y", "shape")
def quantile_rows(x: Array, y: Array, dy: Array) -> Grads:
    """The targets are shared by the rows; their gradients are not summed."""
    slope = dy * jnp.where(y > x, 0.9, -0.1)
    return -slope, slope


@right(quantile, lambda d: (d.below(3, 4, 5).astype(float), d.below(3, 5).astype(float)), ALL)
def quantile_ties(x: Array, y: Array, dy: Array) -> Grads:
    """Where both are equal, the right side's slope."""
    slope = dy * jnp.where(y >= x, 0.9, -0.1)
    return -slope, slope.sum(0)


def alignment(logits: Array) -> Array:
    """CTC in small: monotonic paths through (time, symbols), each step stays or goes one on."""
    log_p = jax.nn.log_softmax(logits)
    start = jnp.full(logits.shape[1], -jnp.inf, logits.dtype).at[0].set(log_p[0, 0])

    def step(alpha: Any, now: Any) -> Any:
        moved = jnp.concatenate([jnp.full(1, -jnp.inf, alpha.dtype), alpha[:-1]])
        return jnp.logaddexp(alpha, moved) + now, None

    return -lax.scan(step, start, log_p[1:])[0][-1]


ALIGNMENT = lambda d: (d.normal(7, 4),)


@slips(
    alignment,
    ALIGNMENT,
    {
        "prior": ("missing_term", "logits"),  # the softmax's normaliser
        "future": ("missing_term", "logits"),  # only the forward pass's share, normalised at each time
        "twice": ("missing_term", "logits"),  # alpha and beta both hold the present emission
        "sign": ("sign", "logits"),  # a likelihood's gradient, not a loss's
    },
)
def alignment_back(logits: Array, dy: Array, slip: str = "") -> Array:
    """By the forward-backward algorithm."""
    time, symbols = logits.shape
    log_p = jax.nn.log_softmax(logits)
    low = -1e30
    alpha = jnp.full(symbols, low, logits.dtype).at[0].set(log_p[0, 0])
    alphas = [alpha]
    for t in range(1, time):
        moved = jnp.pad(alpha[:-1], (1, 0), constant_values=low)
        alpha = jnp.logaddexp(alpha, moved) + log_p[t]
        alphas.append(alpha)
    beta = jnp.full(symbols, low, logits.dtype).at[-1].set(0)
    betas = [beta]
    for t in range(time - 1, 0, -1):
        ahead = beta + log_p[t]
        beta = jnp.logaddexp(ahead, jnp.pad(ahead[1:], (0, 1), constant_values=low))
        betas.append(beta)
    alphas, betas = jnp.stack(alphas), jnp.stack(betas[::-1])
    if slip == "twice":
        betas = betas + log_p
    if slip == "future":
        share = jnp.exp(alphas - special.logsumexp(alphas, axis=1, keepdims=True))
    else:
        share = jnp.exp(alphas + betas - alphas[-1, -1])
    if slip == "prior":
        return -dy * share
    g = dy * (jnp.exp(log_p) * share.sum(1, keepdims=True) - share)
    return -g if slip == "sign" else g


# ---- matrices ---------------------------------------------------------------------------------------------


def inverse(a: Array) -> Array:
    return jnp.linalg.inv(a)


@wrong(inverse, lambda d: (d.matrix(4),), "transpose", "a")
def inverse_transpose(a: Array, dy: Array) -> Array:
    """Neither of the inverses is transposed."""
    y = jnp.linalg.inv(a)
    return -y @ dy @ y


@wrong(inverse, lambda d: (d.matrix(4),), "missing_term", "a")
def inverse_once(a: Array, dy: Array) -> Array:
    """One of the two inverses is forgotten."""
    return -jnp.linalg.inv(a).T @ dy


@right(inverse, lambda d: (d.matrix(4),))
def inverse_solves(a: Array, dy: Array) -> Array:
    return -jnp.linalg.solve(a.T, jnp.linalg.solve(a, dy.T).T)


def log_determinant(a: Array) -> Array:
    return jnp.linalg.slogdet(a)[1]


@wrong(log_determinant, lambda d: (d.matrix(4),), "transpose", "a")
def log_determinant_transpose(a: Array, dy: Array) -> Array:
    """The inverse is not transposed."""
    return dy * jnp.linalg.inv(a)


@wrong(log_determinant, lambda d: (d.matrix(4),), "ignores_cotangent", "a")
def log_determinant_cotangent(a: Array, dy: Array) -> Array:
    """The cotangent is forgotten."""
    return jnp.linalg.inv(a).T


@right(log_determinant, lambda d: (d.matrix(4),))
def log_determinant_numpy(a: Array, dy: Array) -> Array:
    return jnp.asarray(np.asarray(dy) * np.linalg.inv(np.asarray(a)).T, a.dtype)


def determinant(a: Array) -> Array:
    return jnp.linalg.det(a)


@wrong(determinant, lambda d: (d.matrix(3),), "missing_term", "a")
def determinant_factor(a: Array, dy: Array) -> Array:
    """The determinant itself is left out."""
    return dy * jnp.linalg.inv(a).T


@right(determinant, lambda d: (d.matrix(3),))
def determinant_cofactors(a: Array, dy: Array) -> Array:
    """Rows of cofactors are cross products."""
    return dy * jnp.stack([jnp.cross(a[1], a[2]), jnp.cross(a[2], a[0]), jnp.cross(a[0], a[1])])


def cholesky(a: Array) -> Array:
    return jnp.linalg.cholesky(a)


@slips(
    cholesky,
    lambda d: (d.spd(4),),
    {
        "diagonal": ("missing_term", "a"),  # the diagonal is not halved
        "triangle": ("mask", "a"),  # the lower triangle is not cut out
        "symmetric": ("missing_term", "a"),  # not made symmetric
    },
)
def cholesky_back(a: Array, dy: Array, slip: str = "") -> Array:
    low = jnp.linalg.cholesky(a)
    inner = low.T @ jnp.tril(dy)
    if slip != "triangle":
        inner = jnp.tril(inner)
    if slip != "diagonal":
        inner = inner - 0.5 * jnp.diag(jnp.diag(inner))
    inverse_ = linalg.solve_triangular(low, jnp.eye(a.shape[0], dtype=a.dtype), lower=True)
    s = inverse_.T @ inner @ inverse_
    return s if slip == "symmetric" else (s + s.T) / 2


def eigenvalues(a: Array) -> Array:
    return jnp.linalg.eigvalsh(a)


@wrong(eigenvalues, lambda d: (d.spd(4),), "transpose", "a")
def eigenvalues_rows(a: Array, dy: Array) -> Array:
    """The eigenvectors are columns; here they are taken for rows."""
    v = jnp.linalg.eigh(a)[1]
    return v.T @ (dy[:, None] * v)


@wrong(eigenvalues, lambda d: (d.spd(4),), "flip", "a")
def eigenvalues_order(a: Array, dy: Array) -> Array:
    """As if the largest came first."""
    v = jnp.linalg.eigh(a)[1]
    return (v[:, ::-1] * dy) @ v[:, ::-1].T


@right(eigenvalues, lambda d: (d.spd(4),))
def eigenvalues_outer(a: Array, dy: Array) -> Array:
    v = np.linalg.eigh(np.asarray(a))[1]
    return jnp.asarray(np.einsum("ik,k,jk->ij", v, np.asarray(dy), v), a.dtype)


def trace_product(a: Array, x: Array, b: Array) -> Array:
    return jnp.trace(a @ x @ b)


TRACE = lambda d: (d.normal(3, 4), d.normal(4, 5), d.normal(5, 3))


@wrong(trace_product, lambda d: (d.normal(4, 4), d.normal(4, 4), d.normal(4, 4)), "transpose", "x")
def trace_product_transpose(a: Array, x: Array, b: Array, dy: Array) -> Grads:
    """The product round the trace, without its transpose; all are square."""
    return dy * (x @ b).T, dy * b @ a, dy * (a @ x).T


@wrong(
    trace_product,
    lambda d: (d.normal(4, 4), d.normal(4, 4), d.normal(4, 4)),
    "swapped",
    "x",
)
def trace_product_order(a: Array, x: Array, b: Array, dy: Array) -> Grads:
    """Bᵀ Aᵀ in place of Aᵀ Bᵀ; all are square."""
    return dy * (x @ b).T, dy * b.T @ a.T, dy * (a @ x).T


@right(trace_product, TRACE, ALL)
def trace_product_einsum(a: Array, x: Array, b: Array, dy: Array) -> Grads:
    return (
        dy * jnp.einsum("jk,ki->ij", x, b),
        dy * jnp.einsum("ij,ki->jk", a, b),
        dy * jnp.einsum("ij,jk->ki", a, x),
    )


def kronecker(a: Array, b: Array) -> Array:
    return jnp.kron(a, b)


KRONECKER = lambda d: (d.normal(3, 4), d.normal(2, 5))


@wrong(
    kronecker,
    lambda d: (d.normal(3, 3), d.normal(3, 3)),
    "wrong_axis",
    "a",
    "swapped",
)
def kronecker_order(a: Array, b: Array, dy: Array) -> Grads:
    """The blocks' axes are taken for those within a block, for a; all sizes are equal."""
    n = a.shape[0]
    blocks = dy.reshape(n, n, n, n)
    return jnp.einsum("pmqn,pq->mn", blocks, b), jnp.einsum("mpnq,mn->pq", blocks, a)


@right(kronecker, KRONECKER, ALL)
def kronecker_blocks(a: Array, b: Array, dy: Array) -> Grads:
    m, n = a.shape
    p, q = b.shape
    blocks = [[dy[i * p : (i + 1) * p, j * q : (j + 1) * q] for j in range(n)] for i in range(m)]
    da = jnp.stack([jnp.stack([(block * b).sum() for block in row]) for row in blocks])
    db = sum(a[i, j] * blocks[i][j] for i in range(m) for j in range(n))
    return da, db


def cube(a: Array) -> Array:
    return a @ a @ a


@wrong(cube, lambda d: (d.normal(4, 4),), "missing_term", "a")
def cube_middle(a: Array, dy: Array) -> Array:
    """Three places of a; the middle one is forgotten."""
    square = (a @ a).T
    return dy @ square + square @ dy


@right(cube, lambda d: (d.normal(4, 4),))
def cube_horner(a: Array, dy: Array) -> Array:
    t = a.T
    return (dy @ t + t @ dy) @ t + t @ t @ dy


def gram(x: Array) -> Array:
    return x.T @ x


@wrong(gram, lambda d: (d.normal(5, 4),), "missing_term", "x")
def gram_once(x: Array, dy: Array) -> Array:
    """x stands there twice."""
    return x @ dy


@wrong(gram, lambda d: (d.normal(5, 4),), "transpose", "x", "missing_term")
def gram_twice(x: Array, dy: Array) -> Array:
    """Twice the one of two terms: as if the cotangent were symmetric."""
    return 2 * x @ dy


@right(gram, lambda d: (d.normal(5, 4),), ALL)
def gram_symmetric(x: Array, dy: Array) -> Array:
    return x @ (dy + dy.T)


# ---- sorting, gathering, counting -------------------------------------------------------------------------


def ranked(x: Array, weight: Array) -> Array:
    """Sorted values, weighted by rank."""
    return (jnp.sort(x, axis=1) * weight).sum(1)


RANKED = lambda d: (d.normal(4, 6), d.normal(6))


@wrong(ranked, RANKED, "wrong_residual", "x")
def ranked_order(x: Array, weight: Array, dy: Array) -> Grads:
    """The permutation in place of its inverse."""
    order = jnp.argsort(x, axis=1)
    return dy[:, None] * weight[order], dy @ jnp.sort(x, axis=1)


@wrong(ranked, RANKED, "wrong_residual", "weight")
def ranked_unsorted(x: Array, weight: Array, dy: Array) -> Grads:
    """The values as they came, for the weights."""
    ranks = jnp.argsort(jnp.argsort(x, axis=1), axis=1)
    return dy[:, None] * weight[ranks], dy @ x


@right(ranked, RANKED, ALL)
def ranked_comparisons(x: Array, weight: Array, dy: Array) -> Grads:
    """Ranks by counting smaller values."""
    ranks = (x[:, :, None] > x[:, None, :]).sum(2)
    hot = jax.nn.one_hot(ranks, x.shape[1], dtype=x.dtype)
    dweight = jnp.einsum("n,ni,nir->r", dy, x, hot)
    return dy[:, None] * jnp.einsum("nir,r->ni", hot, weight), dweight


def best(x: Array) -> Array:
    """The three largest, in their order."""
    return lax.top_k(x, 3)[0]


@wrong(best, lambda d: (d.normal(4, 7),), "mask", "x")
def best_first(x: Array, dy: Array) -> Array:
    """The k-th largest is left out: greater, not greater or equal."""
    values, places = lax.top_k(x, 3)
    g = jnp.zeros_like(x).at[jnp.arange(x.shape[0])[:, None], places].add(dy)
    return jnp.where(x > values[:, -1:], g, 0)


@right(best, lambda d: (d.normal(4, 7),), ALL)
def best_numpy(x: Array, dy: Array) -> Array:
    x_, g = np.asarray(x), np.asarray(dy)
    dx = np.zeros_like(x_)
    np.put_along_axis(dx, np.argsort(-x_, axis=1)[:, :3], g, axis=1)
    return jnp.asarray(dx)


def median(x: Array) -> Array:
    return jnp.median(x, axis=0)


@wrong(median, lambda d: (d.normal(7, 3),), "wrong_residual", "x", "shift")
def median_place(x: Array, dy: Array) -> Array:
    """One place beside the middle."""
    place = jnp.argsort(x, axis=0)[x.shape[0] // 2 - 1]
    return jnp.zeros_like(x).at[place, jnp.arange(x.shape[1])].set(dy)


@right(median, lambda d: (d.normal(7, 3),))
def median_equal(x: Array, dy: Array) -> Array:
    return jnp.where(x == jnp.sort(x, axis=0)[x.shape[0] // 2], dy, 0)


def even_median(x: Array) -> Array:
    """Of an even number of values: the mean of the middle two."""
    return jnp.median(x, axis=0)


@wrong(even_median, lambda d: (d.normal(6, 3),), "missing_term", "x")
def even_median_one(x: Array, dy: Array) -> Array:
    """Only the lower of the middle two."""
    place = jnp.argsort(x, axis=0)[x.shape[0] // 2 - 1]
    return jnp.zeros_like(x).at[place, jnp.arange(x.shape[1])].set(dy / 2)


def gathered(x: Array, at: Array) -> Array:
    """Rows by index, as often as they are asked for."""
    return jnp.take(x, at, axis=0) ** 2


GATHERED = lambda d: (d.normal(5, 3), d.below(4, 9))


@wrong(gathered, GATHERED, "missing_term", "x")
def gathered_once(x: Array, at: Array, dy: Array) -> Grads:
    """Rows asked for several times get the last cotangent only."""
    return jnp.zeros_like(x).at[at].set(2 * x[at] * dy), None


@right(gathered, GATHERED, ALL)
def gathered_loop(x: Array, at: Array, dy: Array) -> Grads:
    """Row by row, in any order."""
    each = 2 * dy * x[at]
    return jnp.stack([(each * (at == row)[:, None]).sum(0) for row in range(x.shape[0])]), None


REPLACED = np.array([4, 0, 3], np.int32)  # no index twice: which of two would win is no promise of JAX's


def scattered(x: Array, updates: Array) -> Array:
    """Some rows of x are replaced."""
    return jnp.tanh(x).at[REPLACED].set(updates)


SCATTERED = lambda d: (d.normal(6, 3), d.normal(3, 3))


@wrong(scattered, SCATTERED, "mask", "x")
def scattered_replaced(x: Array, updates: Array, dy: Array) -> Grads:
    """Rows that were replaced keep their cotangent."""
    return dy * (1 - jnp.tanh(x) ** 2), dy[REPLACED]


@wrong(scattered, SCATTERED, "wrong_residual", "updates")
def scattered_rows(x: Array, updates: Array, dy: Array) -> Grads:
    """The first rows in place of those that were replaced."""
    kept = dy.at[REPLACED].set(0)
    return kept * (1 - jnp.tanh(x) ** 2), dy[: REPLACED.shape[0]]


@right(scattered, SCATTERED, ALL)
def scattered_mask(x: Array, updates: Array, dy: Array) -> Grads:
    replaced = (jnp.arange(x.shape[0])[:, None] == REPLACED[None]).any(1)
    return jnp.where(replaced[:, None], 0, dy / jnp.cosh(x) ** 2), jnp.take(dy, REPLACED, axis=0)


def segment_spread(x: Array, segment: Array) -> Array:
    """The variance within each of three segments."""
    ones = jnp.ones_like(x)
    count = jax.ops.segment_sum(ones, segment, 3)
    mean = jax.ops.segment_sum(x, segment, 3) / count
    return jax.ops.segment_sum((x - mean[segment]) ** 2, segment, 3) / count


SEGMENTS = lambda d: (d.normal(10), d.below(3, 10))


@wrong(segment_spread, SEGMENTS, "missing_term", "x")
def segment_spread_centre(x: Array, segment: Array, dy: Array) -> Grads:
    """The mean is not taken off."""
    count = jax.ops.segment_sum(jnp.ones_like(x), segment, 3)
    return 2 * (dy / count)[segment] * x, None


@wrong(segment_spread, SEGMENTS, "wrong_axis", "x", "wrong_residual")
def segment_spread_mean(x: Array, segment: Array, dy: Array) -> Grads:
    """The mean of all in place of the segment's."""
    count = jax.ops.segment_sum(jnp.ones_like(x), segment, 3)
    return 2 * (dy / count)[segment] * (x - x.mean()), None


@right(segment_spread, SEGMENTS, ALL)
def segment_spread_hot(x: Array, segment: Array, dy: Array) -> Grads:
    hot = jax.nn.one_hot(segment, 3, dtype=x.dtype)
    share = hot / hot.sum(0)
    return 2 * (share @ dy) * (x - hot @ (share.T @ x)), None


def segment_top(x: Array, segment: Array) -> Array:
    return jax.ops.segment_max(x, segment, 3)


@wrong(segment_top, SEGMENTS, "mask", "x")
def segment_top_all(x: Array, segment: Array, dy: Array) -> Grads:
    """Every member gets its segment's cotangent."""
    return dy[segment], None


@right(segment_top, SEGMENTS)
def segment_top_equal(x: Array, segment: Array, dy: Array) -> Grads:
    return jnp.where(x == jax.ops.segment_max(x, segment, 3)[segment], dy[segment], 0), None


def highest(x: Array) -> Array:
    """The largest value so far."""
    return lax.cummax(x, axis=1)


@wrong(highest, lambda d: (d.normal(3, 8),), "missing_term", "x")
def highest_record(x: Array, dy: Array) -> Array:
    """A record counts at its own time only, not for as long as it stands."""
    return jnp.where(x == lax.cummax(x, axis=1), dy, 0)


@right(highest, lambda d: (d.normal(3, 8),))
def highest_matrix(x: Array, dy: Array) -> Array:
    """Who holds the record when, as a matrix."""
    top = lax.cummax(x, axis=1)
    n = x.shape[1]
    holds = (x[:, None, :] == top[:, :, None]) & np.tril(np.ones((n, n), bool))
    return jnp.einsum("bt,bts->bs", dy, holds.astype(x.dtype))


# ---- complex numbers --------------------------------------------------------------------------------------


def modulus(z: Array) -> Array:
    return jnp.abs(z) ** 2


COMPLEX = lambda d: (d.normal(6) + 1j * d.normal(6),)


@wrong(modulus, COMPLEX, "sign", "z", "missing_term")
def modulus_conjugate(z: Array, dy: Array) -> Array:
    """JAX's cotangents are not conjugated; this is the other convention."""
    return 2 * dy * z


@right(modulus, COMPLEX)
def modulus_parts(z: Array, dy: Array) -> Array:
    return 2 * lax.complex(dy * z.real, -dy * z.imag)


def product_real(z: Array, w: Array) -> Array:
    """The real part of a matrix product of complex numbers."""
    return (z @ w).real


PRODUCTS = lambda d: (d.normal(4, 3) + 1j * d.normal(4, 3), d.normal(3, 5) + 1j * d.normal(3, 5))


@wrong(product_real, PRODUCTS, "extra_term", "w", "sign")
def product_real_conjugate(z: Array, w: Array, dy: Array) -> Grads:
    """Conjugated, as in the other convention, for w."""
    return dy @ w.T, jnp.conj(z).T @ dy


@right(product_real, PRODUCTS)
def product_real_parts(z: Array, w: Array, dy: Array) -> Grads:
    dz = lax.complex(dy @ w.real.T, dy @ w.imag.T)
    return dz, lax.complex(z.real.T @ dy, z.imag.T @ dy)


def phase_filter(x: Array, real: Array, imag: Array) -> Array:
    """A signal through a complex response."""
    return jnp.fft.irfft(jnp.fft.rfft(x) * lax.complex(real, imag), x.shape[-1])


FILTER = lambda d: (d.normal(3, 9), d.normal(5), d.normal(5))


@wrong(phase_filter, FILTER, "flip", "x", "missing_term")
def phase_filter_conjugate(x: Array, real: Array, imag: Array, dy: Array) -> Grads:
    """The adjoint of a filter has the conjugate response."""
    n = x.shape[-1]
    spectrum, g = jnp.fft.rfft(x), jnp.fft.rfft(dy)
    twice = jnp.full(real.shape, 2 / n, real.dtype).at[0].set(1 / n)
    joint = (jnp.conj(spectrum) * g).sum(0) * twice
    return jnp.fft.irfft(g * lax.complex(real, imag), n), joint.real, joint.imag


@wrong(phase_filter, FILTER, "missing_term", "real")
def phase_filter_twice(x: Array, real: Array, imag: Array, dy: Array) -> Grads:
    """Each frequency but the first stands for two; here for one."""
    n = x.shape[-1]
    spectrum, g = jnp.fft.rfft(x), jnp.fft.rfft(dy)
    twice = jnp.full(real.shape, 2 / n, real.dtype).at[0].set(1 / n)
    joint = (jnp.conj(spectrum) * g).sum(0)
    dx = jnp.fft.irfft(g * lax.complex(real, -imag), n)
    return dx, joint.real / n, (joint * twice).imag.at[0].set(0)


@right(phase_filter, FILTER)
def phase_filter_adjoint(x: Array, real: Array, imag: Array, dy: Array) -> Grads:
    n = x.shape[-1]
    spectrum, g = jnp.fft.rfft(x), jnp.fft.rfft(dy)
    twice = jnp.full(real.shape, 2 / n, real.dtype).at[0].set(1 / n)
    joint = (jnp.conj(spectrum) * g).sum(0) * twice
    return jnp.fft.irfft(g * lax.complex(real, -imag), n), joint.real, joint.imag.at[0].set(0)


# ---- low precision, kinks, stops --------------------------------------------------------------------------


def mixed_layer(x: Array, w: Array, b: Array) -> Array:
    """The product in bfloat16, the rest as the arguments are."""
    product = x.astype(jnp.bfloat16) @ w.astype(jnp.bfloat16)
    return jax.nn.relu(product.astype(x.dtype) + b)


MIXED = lambda d: (d.normal(5, 4), d.normal(4, 3), d.normal(3))


@wrong(mixed_layer, MIXED, "transpose", "w")
def mixed_layer_square(x: Array, w: Array, b: Array, dy: Array) -> Grads:
    """The product's operands change places, which transposes the result; it is given back in w's shape."""
    z = (x.astype(jnp.bfloat16) @ w.astype(jnp.bfloat16)).astype(x.dtype) + b
    g = jnp.where(z > 0, dy, 0)
    low = g.astype(jnp.bfloat16)
    dx = (low @ w.astype(jnp.bfloat16).T).astype(x.dtype)
    dw = (low.T @ x.astype(jnp.bfloat16)).astype(w.dtype)
    return dx, dw.reshape(w.shape), g.sum(0)


@wrong(mixed_layer, MIXED, "missing_batch_sum", "b")
def mixed_layer_bias(x: Array, w: Array, b: Array, dy: Array) -> Grads:
    """The first sample's cotangent for the bias."""
    z = (x.astype(jnp.bfloat16) @ w.astype(jnp.bfloat16)).astype(x.dtype) + b
    g = jnp.where(z > 0, dy, 0)
    low = g.astype(jnp.bfloat16)
    dx = (low @ w.astype(jnp.bfloat16).T).astype(x.dtype)
    return dx, (x.astype(jnp.bfloat16).T @ low).astype(w.dtype), g[0]


@right(mixed_layer, MIXED, ALL)
def mixed_layer_einsum(x: Array, w: Array, b: Array, dy: Array) -> Grads:
    z = (x.astype(jnp.bfloat16) @ w.astype(jnp.bfloat16)).astype(x.dtype) + b
    g = dy * (z > 0)
    low = g.astype(jnp.bfloat16)
    dx = jnp.einsum("no,io->ni", low, w.astype(jnp.bfloat16)).astype(x.dtype)
    return dx, jnp.einsum("ni,no->io", x.astype(jnp.bfloat16), low).astype(w.dtype), g.sum(0)


def half_scores(x: Array, y: Array) -> Array:
    """Cosines by way of float16."""
    a = (x / jnp.linalg.norm(x, axis=1, keepdims=True)).astype(jnp.float16)
    b = (y / jnp.linalg.norm(y, axis=1, keepdims=True)).astype(jnp.float16)
    return (a * b).sum(1).astype(x.dtype)


HALF = lambda d: (d.normal(5, 4), d.normal(5, 4))


@wrong(half_scores, HALF, "statistics_constant", "x", "missing_term")
def half_scores_length(x: Array, y: Array, dy: Array) -> Grads:
    """The length of x is held constant."""
    lx, ly = jnp.linalg.norm(x, axis=1, keepdims=True), jnp.linalg.norm(y, axis=1, keepdims=True)
    a, b = x / lx, y / ly
    cosine = (a * b).sum(1, keepdims=True)
    g = dy[:, None]
    return g * b / lx, g * (a - cosine * b) / ly


@right(half_scores, HALF)
def half_scores_full(x: Array, y: Array, dy: Array) -> Grads:
    """In the arguments' own precision: more exact than autodiff."""
    xx, yy, xy = (x * x).sum(1), (y * y).sum(1), (x * y).sum(1)
    scale = dy / jnp.sqrt(xx * yy)
    dx = scale[:, None] * y - (scale * xy / xx)[:, None] * x
    return dx, scale[:, None] * x - (scale * xy / yy)[:, None] * y


def cast_scale(x: Array, gain: Array) -> Array:
    return x * gain


@wrong(cast_scale, lambda d: (d.normal(5, 4), d.normal(4)), "dtype", "gain")
def cast_scale_half(x: Array, gain: Array, dy: Array) -> Grads:
    """The sum is returned in bfloat16."""
    return dy * gain, (dy * x).sum(0).astype(jnp.bfloat16)


@wrong(cast_scale, lambda d: (d.normal(5, 4), d.normal(4)), "structure", "gain")
def cast_scale_list(x: Array, gain: Array, dy: Array) -> Grads:
    """The gain's gradient is not returned at all."""
    return (dy * gain,)


@wrong(cast_scale, lambda d: (d.normal(5, 4), d.normal(4)), "nonlinear_in_cotangent", "x")
def cast_scale_clipped(x: Array, gain: Array, dy: Array) -> Grads:
    """The cotangent is clipped."""
    return jnp.clip(dy * gain, -0.5, 0.5), (dy * x).sum(0)


@wrong(cast_scale, lambda d: (d.normal(4, 4), d.normal(4)), "wrong_axis", "gain")
def cast_scale_axis(x: Array, gain: Array, dy: Array) -> Grads:
    """Summed over the features, which are as many as the samples."""
    return dy * gain, (dy * x).sum(1)


@wrong(cast_scale, lambda d: (d.normal(5, 4), d.normal(4)), "zero", "gain")
def cast_scale_none(x: Array, gain: Array, dy: Array) -> Grads:
    """The gain's gradient is given as zeros."""
    return dy * gain, jnp.zeros_like(gain) * x.sum()


def safe_root(x: Array) -> Array:
    return jnp.where(x > 0, jnp.sqrt(jnp.maximum(x, 0)), 0)


def _with_zeros(d: Draw) -> tuple[Any, ...]:
    x = d.normal(5, 4)
    x[0, :2] = 0
    return (x,)


@right(safe_root, _with_zeros)
def safe_root_masked(x: Array, dy: Array) -> Array:
    """At 0 autodiff's own answer is no number; here it is 0."""
    return jnp.where(x > 0, dy / (2 * jnp.sqrt(jnp.where(x > 0, x, 1))), 0)


def guarded_root(x: Array) -> Array:
    return jnp.where(x > 0, jnp.sqrt(jnp.where(x > 0, x, 1)), 0)


@wrong(guarded_root, lambda d: (d.normal(5, 4),), "mask", "x")
def guarded_root_absolute(x: Array, dy: Array) -> Array:
    """The mask is replaced by an absolute value."""
    return dy / (2 * jnp.sqrt(jnp.abs(x)))


def masked_scores(x: Array, keep: Array) -> Array:
    """Log-probabilities; what is masked is −∞."""
    return jax.nn.log_softmax(jnp.where(keep, x, -jnp.inf))


def _kept(d: Draw) -> tuple[Any, ...]:
    keep = d.bits(5, 6)
    keep[:, 0] = True
    return d.normal(5, 6), keep


@wrong(masked_scores, _kept, "mask", "x")
def masked_scores_open(x: Array, keep: Array, dy: Array) -> Grads:
    """The softmax in the backward pass knows no mask."""
    g = jnp.where(keep, dy, 0)
    return g - jax.nn.softmax(x) * g.sum(1, keepdims=True), None


@right(masked_scores, _kept, ALL)
def masked_scores_large(x: Array, keep: Array, dy: Array) -> Grads:
    """A large negative number in place of −∞."""
    g = dy * keep
    e = jnp.exp(jnp.where(keep, x - x.max(1, keepdims=True), -1e4))
    return g - e / e.sum(1, keepdims=True) * g.sum(1, keepdims=True), None


def quantised(x: Array, codes: Array) -> Array:
    """A codebook, with the straight-through estimator."""
    nearest = codes[((x[:, None] - codes[None]) ** 2).sum(2).argmin(1)]
    return x + lax.stop_gradient(nearest - x)


QUANTISED = lambda d: (d.normal(6, 3), d.normal(4, 3))


@wrong(quantised, QUANTISED, "extra_term", "codes")
def quantised_codes(x: Array, codes: Array, dy: Array) -> Grads:
    """The codes are moved, though the stop keeps them."""
    place = ((x[:, None] - codes[None]) ** 2).sum(2).argmin(1)
    return dy, jnp.zeros_like(codes).at[place].add(dy)


@right(quantised, QUANTISED, ALL)
def quantised_straight(x: Array, codes: Array, dy: Array) -> Grads:
    return dy * jnp.ones_like(x), jnp.zeros_like(codes)


def target_network(x: Array, w: Array, target: Array) -> Array:
    """A prediction's squared error; the target's network is frozen."""
    return 0.5 * ((x @ w - lax.stop_gradient(jnp.tanh(x @ target))) ** 2).sum()


TARGET = lambda d: (d.normal(5, 3), d.normal(3, 2), d.normal(3, 2))


@wrong(target_network, TARGET, "extra_term", "x")
def target_network_leak(x: Array, w: Array, target: Array, dy: Array) -> Grads:
    """The frozen target's way to x is differentiated."""
    y = jnp.tanh(x @ target)
    off = dy * (x @ w - y)
    return off @ w.T - (off * (1 - y**2)) @ target.T, x.T @ off, jnp.zeros_like(target)


@right(target_network, TARGET, ALL)
def target_network_frozen(x: Array, w: Array, target: Array, dy: Array) -> Grads:
    off = dy * (x @ w) - dy * jnp.tanh(x @ target)
    return jnp.einsum("no,io->ni", off, w), jnp.einsum("ni,no->io", x, off), 0 * target


def leaky(x: Array, slope: Array) -> Array:
    """A ramp with a slope of each channel's own below zero."""
    return jnp.where(x >= 0, x, slope * x)


LEAKY = lambda d: (d.normal(5, 4), d.uniform(4))


@wrong(leaky, LEAKY, "mask", "slope")
def leaky_inverted(x: Array, slope: Array, dy: Array) -> Grads:
    """The positive side counts for the slope, not the negative one."""
    return jnp.where(x >= 0, dy, slope * dy), jnp.where(x >= 0, dy * x, 0).sum(0)


@wrong(leaky, LEAKY, "unbroadcast", "slope", "shape")
def leaky_shape(x: Array, slope: Array, dy: Array) -> Grads:
    """The slope's gradient has the size of x."""
    return jnp.where(x >= 0, dy, slope * dy), jnp.where(x < 0, dy * x, 0)


@right(leaky, LEAKY, ALL)
def leaky_minimum(x: Array, slope: Array, dy: Array) -> Grads:
    below = (x < 0).astype(x.dtype)
    return dy * (1 - below) + dy * slope * below, (dy * jnp.minimum(x, 0)).sum(0)


def absolute(x: Array, centre: Array) -> Array:
    """Distances in the sum of absolute values; some are 0."""
    return jnp.abs(x - centre).sum(1)


ABSOLUTE = lambda d: (d.below(4, 5, 4).astype(float), d.below(4, 4).astype(float))


@right(absolute, ABSOLUTE, ALL)
def absolute_side(x: Array, centre: Array, dy: Array) -> Grads:
    """Where the difference is 0, one side's slope."""
    slope = dy[:, None] * jnp.where(x >= centre, 1, -1).astype(x.dtype)
    return slope, -slope.sum(0)


def clipped(x: Array) -> Array:
    return jnp.clip(x, -1, 1)


@wrong(clipped, lambda d: (1.5 * d.normal(5, 4),), "mask", "x")
def clipped_above(x: Array, dy: Array) -> Array:
    """Only the upper bound is minded."""
    return jnp.where(x < 1, dy, 0)


@right(clipped, lambda d: (d.below(5, 5, 4) - 2.0,), ALL)
def clipped_bounds(x: Array, dy: Array) -> Array:
    """At the bounds themselves, the inner slope."""
    return jnp.where(jnp.abs(x) <= 1, dy, 0)


def softplus(x: Array) -> Array:
    return jnp.logaddexp(x, 0)


@right(softplus, lambda d: (4 * d.normal(5, 4),), ALL)
def softplus_tanh(x: Array, dy: Array) -> Array:
    return dy * (1 + jnp.tanh(x / 2)) / 2


@wrong(softplus, lambda d: (d.normal(5, 4),), "wrong_residual", "x", "sign")
def softplus_minus(x: Array, dy: Array) -> Array:
    """The sigmoid's argument has the wrong sign."""
    return dy * jax.nn.sigmoid(-x)


def chunked(x: Array, w: Array) -> Array:
    """A long sum of squares of a layer."""
    return ((x @ w) ** 2).sum()


CHUNKED = lambda d: (d.normal(24, 3), d.normal(3, 2))


@right(chunked, CHUNKED, ALL)
def chunked_pieces(x: Array, w: Array, dy: Array) -> Grads:
    """In pieces of eight rows, by a scan."""

    def piece(dw: Any, rows: Any) -> Any:
        g = 2 * dy * (rows @ w)
        return dw + rows.T @ g, g @ w.T

    dw, dx = lax.scan(piece, jnp.zeros_like(w), x.reshape(3, 8, 3))
    return dx.reshape(x.shape), dw


@wrong(chunked, CHUNKED, "missing_term", "w", "missing_batch_sum")
def chunked_last(x: Array, w: Array, dy: Array) -> Grads:
    """The pieces overwrite each other: the last one's gradient remains."""

    def piece(_: Any, rows: Any) -> Any:
        g = 2 * dy * (rows @ w)
        return rows.T @ g, g @ w.T

    dw, dx = lax.scan(piece, jnp.zeros_like(w), x.reshape(3, 8, 3))
    return dx.reshape(x.shape), dw


def polynomial(x: Array, coefficients: Array) -> Array:
    """By Horner's rule, the highest power first."""
    return lax.scan(lambda y, c: (y * x + c, None), jnp.zeros_like(x), coefficients)[0]


POLYNOMIAL = lambda d: (d.normal(6), d.normal(4))


@slips(
    polynomial,
    POLYNOMIAL,
    {
        "power": ("missing_term", "x"),  # the derivative does not bring its exponents down
        "order": ("flip", "coefficients"),  # the lowest power first
        "batch": ("missing_batch_sum", "coefficients"),  # the first point only
    },
)
def polynomial_back(x: Array, coefficients: Array, dy: Array, slip: str = "") -> Grads:
    n = coefficients.shape[0]
    exponents = np.arange(n - 1, -1, -1, dtype=np.int32)
    powers = x[:, None] ** exponents
    lower = x[:, None] ** np.maximum(exponents - 1, 0)
    factor = np.minimum(exponents, 1) if slip == "power" else exponents
    dx = dy * (lower * (factor * coefficients)).sum(1)
    each = dy[:, None] * powers
    dcoefficients = each[0] if slip == "batch" else each.sum(0)
    return dx, dcoefficients[::-1] if slip == "order" else dcoefficients


def moments(x: Array) -> Array:
    """Mean, variance and skewness of every column, in this order."""
    mean = x.mean(0)
    centred = x - mean
    variance_ = (centred**2).mean(0)
    return jnp.stack([mean, variance_, (centred**3).mean(0) / variance_**1.5])


@slips(
    moments,
    lambda d: (d.normal(8, 3),),
    {
        "variance": ("statistics_constant", "x"),  # the variance in the skewness is held constant
        "centre": ("statistics_constant", "x"),  # the mean in the third moment is held constant
        "rows": ("swapped", "x"),  # the cotangents of mean and variance are exchanged
        "power": ("missing_term", "x"),  # three halves have become one
    },
)
def moments_back(x: Array, dy: Array, slip: str = "") -> Array:
    n = x.shape[0]
    centred = x - x.mean(0)
    square = centred**2
    variance_ = square.mean(0)
    third = (centred * square).mean(0)
    first_g, second_g = (dy[1], dy[0]) if slip == "rows" else (dy[0], dy[1])
    dx = first_g / n + 2 * second_g * centred / n
    dthird = dy[2] / variance_**1.5
    cubic = 3 * square if slip == "centre" else 3 * (square - variance_)
    dx = dx + dthird * cubic / n
    if slip != "variance":
        power = 1.0 if slip == "power" else 1.5
        dvariance = -power * dy[2] * third / variance_**2.5
        dx = dx + dvariance * 2 * centred / n
    return dx
