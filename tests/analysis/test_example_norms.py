"""Norms of single examples' gradients: equal to vmap(grad), on whole nets; refused where they were wrong."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import funcnet as fn
from funcnet import rules
from funcnet.analysis import ExampleNorms, clip_per_example, example_norms, noise_scale
from funcnet.errors import DTypeError, ShapeError, StructureError, ValueRangeError
from funcnet.nets import convnet, encoder, mlp, resnet, transformer, vit
from funcnet.ops import _squares
from tests.cases import CASES
from tests.errors import golden
from tests.laws import close, has_squares

N = 3


def draw(init, config=None, seed=0):
    """Params in float64, none of them at what it is drawn to begin with (0 for biases, 1 for gains)."""
    shapes = jax.eval_shape(lambda: init(jax.random.key(0), config) if config else init(jax.random.key(0)))
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda v: jnp.asarray(0.5 * rng.standard_normal(v.shape) + 0.2), shapes)


def normal(*shape):
    return jnp.asarray(np.random.default_rng(1).standard_normal(shape))


def integers(high, *shape):
    return jnp.asarray(np.random.default_rng(2).integers(0, high, shape), jnp.int32)


def each(losses, of):
    """The losses of tokens, added up for each example."""
    return losses.reshape(len(of), -1).sum(-1)


def truth(loss, params, batch):
    """The gradients of single examples, and their norms."""
    one = lambda params, entry: loss(params, jax.tree.map(lambda v: v[None], entry))[0]
    grads = jax.vmap(jax.grad(one), (None, 0))(params, batch)
    return grads, jnp.sqrt(sum((g.reshape(len(g), -1) ** 2).sum(1) for g in jax.tree.leaves(grads)))


def agree(loss, params, batch, alone=True):
    """Norms alone, norms with the gradient, and the truth are one."""

    def all_of(params, batch):
        result = example_norms(loss)(params, batch, grads=True)
        norms = example_norms(loss)(params, batch) if alone else result.norms
        return norms, result, truth(loss, params, batch), loss(params, batch)

    norms, result, (grads, want), values = jax.jit(all_of)(params, batch)
    close(norms, want)
    close(tuple(result), (values, jax.tree.map(lambda g: g.sum(0), grads), want))
    assert np.ptp(np.asarray(want)) > 1e-3 * float(want[0])


def images(net, config, **options):
    def loss(params, batch):
        logits = net.apply(params, batch[0], config, **options)
        return fn.cross_entropy.apply(logits, batch[1])

    return loss, draw(net.init, config), (normal(N, *config.image), integers(3, N))


def of_mlp():
    config = mlp.Config((5, 7, 3))
    loss = lambda params, batch: fn.cross_entropy.apply(mlp.apply(params, batch[0], config), batch[1])
    return loss, draw(mlp.init, config), (normal(N, 5), integers(3, N))


def of_resnet():
    config = resnet.Config((4, 4, 2), (2, 3), (1, 1), classes=3)
    state = jax.tree.map(lambda v: v + 0.3, resnet.init_state(config))

    def loss(params, batch):
        logits, _ = resnet.apply(params, state, batch[0], config, train=False)
        return fn.cross_entropy.apply(logits, batch[1])

    return loss, draw(resnet.init, config), (normal(N, 4, 4, 2), integers(3, N))


def of_transformer(chunk=None, **options):
    """By its logits, or by `linear_cross_entropy` in chunks."""
    options = {"context": 5, "d": 4, "heads": 2, "layers": 2, "d_hidden": 3} | options
    config = transformer.Config(7, **options)

    def loss(params, ids):
        if chunk is None:
            losses = fn.cross_entropy.apply(transformer.apply(params, ids[:, :-1], config), ids[:, 1:])
        else:
            x, head = transformer.hidden(params, ids[:, :-1], config), transformer.head(params, config)
            losses = fn.linear_cross_entropy.apply(x, head, ids[:, 1:], chunk=chunk, z_loss=0.1)
        return each(losses, ids)

    return loss, draw(transformer.init, config), integers(7, N, 5)


def of_encoder():
    config = encoder.Config(7, 5, 2, 2, 2, 4, d_hidden=3, head="masked")

    def loss(params, ids):
        logits = encoder.logits(params, encoder.apply(params, ids, config), config)
        return each(fn.cross_entropy.apply(logits, ids), ids)

    return loss, draw(encoder.init, config), integers(7, N, 4)


LLAMA = {"norm": "rms", "mlp": "swiglu", "positions": "rope", "kv_heads": 1, "qk_norm": True, "bias": False}
NETS = {
    "convnet": lambda: images(convnet, convnet.Config((2, 2, 1), (2,), hidden=3, classes=3)),
    "tied, chunks, loop": lambda: of_transformer(4, unroll=1, heads=1, bias=False, norm="rms"),
}
SLOW = {
    "mlp": of_mlp,
    "remat": lambda: of_transformer(3, unroll=1, remat=True),
    "vit": lambda: images(vit, vit.Config((4, 4, 1), (2, 2), 1, 1, 3, classes=3)),
    "tied": of_transformer,
    "untied": lambda: of_transformer(tied=False),
    "untied, chunks": lambda: of_transformer(3, tied=False),
    "llama": lambda: of_transformer(**LLAMA),
    "windows": lambda: of_transformer(layers=5, unroll=1, windows=(None, 2)),
    "encoder": of_encoder,
    "resnet": of_resnet,
}


@pytest.mark.parametrize("name", [*NETS, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_nets(name):
    agree(*(NETS | SLOW)[name](), alone=name in SLOW)


def test_a_broken_formula_is_seen(monkeypatch):
    """Without the product of its two gradients the norm of a tied table is wrong."""
    loss, params, ids = tied_table(padding_index=1)
    agree(loss, params, ids)
    monkeypatch.setattr(fn.linear, "rows", lambda params, x, ids, dy: jnp.zeros((*ids.shape, x.shape[-1])))
    with pytest.raises(AssertionError):
        agree(lambda params, ids: loss(params, ids), params, ids)  # a function that JAX has not seen


def tied_table(**options):
    def loss(params, ids):
        x = jnp.tanh(fn.embedding.apply(params, ids[:, :-1], **options))
        y = fn.linear.apply({"w": params["w"].T}, x)
        return each(fn.cross_entropy.apply(y, ids[:, 1:]), ids)

    return loss, {"w": normal(4, 2)}, integers(4, N, 6)


@pytest.mark.slow
def test_in_bfloat16():
    """Params in float32, the net in bfloat16: as the gradients of single examples, to its rounding."""
    loss, params, ids = of_transformer(tied=False, dtype="bfloat16")
    params = jax.tree.map(lambda v: v.astype("float32"), params)
    got, (_, want) = jax.jit(lambda p, b: (example_norms(loss)(p, b), truth(loss, p, b)))(params, ids)
    assert got.dtype == "float32"
    close(got, want, 0.03)


def test_parameters_through_all_that_keeps_them():
    """Parts of a stack, a cast, a transpose, a branch, a jitted function used twice, a part of a leaf."""
    twice = jax.jit(lambda w, x: jnp.tanh(fn.linear.apply({"w": w}, x)))

    def loss(params, batch):
        first, second = params["stack"]
        x = twice(second, twice(first.T, batch["x"]))
        branch = lambda w: lambda x: fn.linear.apply({"w": w}, x)
        x = jax.lax.cond(batch["x"].sum() > 0, branch(params["a"]), branch(params["b"]), x)
        x = fn.linear.apply({"w": params["long"][:3]}, x) + fn.linear.apply({"w": params["long"][3:]}, x**2)
        return (x**2).sum(-1)

    shapes = {"stack": (2, 3, 3), "a": (3, 3), "b": (3, 3), "long": (6, 3)}
    agree(loss, {name: normal(*shape) for name, shape in shapes.items()}, {"x": normal(N, 3)})


def test_what_is_no_parameter_of_the_loss_does_not_count():
    """A frozen part lets the gradient through, and adds nothing."""
    frozen = {"w": normal(3, 3), "b": normal(3)}

    def loss(params, x):
        x = fn.linear.apply(frozen, jnp.tanh(fn.linear.apply(params["used"], x)))
        return (x**2).sum(-1) + jax.lax.stop_gradient(params["not used"]).sum()

    agree(loss, {"used": {"w": normal(3, 3)}, "not used": normal(2)}, normal(N, 3))


def test_a_part_of_ones_own():
    def squares(shift, x, dy):
        return _squares.summed(dy.sum(1))

    @rules.part(squares)
    def add(params, x):
        return x + params

    loss = lambda params, x: (add(params, x) ** 3).sum((1, 2))
    agree(loss, normal(5), normal(N, 2, 5))


def test_clip():
    """Some cut, some not; one without a gradient; none where the bound is large."""
    loss = lambda params, x: (fn.linear.apply(params, x) ** 2).sum(-1)
    params, x = {"w": normal(3, 2)}, normal(N, 3).at[0].set(0)
    g = 2 * np.einsum("ni,no->nio", x, x @ params["w"])
    norms = np.sqrt((g**2).sum((1, 2)))
    bound = float(np.sort(norms)[1])
    weights = np.where(norms > bound, bound / np.maximum(norms, 1), 1)
    assert (weights < 1).sum() == 1
    got, free = jax.jit(lambda: [clip_per_example(loss, b)(params, x) for b in (bound, 1e9)])()
    close((got.norms, got.grads), (norms, {"w": np.tensordot(weights, g, 1)}))
    close(free.grads, {"w": g.sum(0)})
    close(got.values, loss(params, x))


def test_noise_scale():
    """Against the sample covariance of the gradients themselves."""
    loss = lambda params, x: (fn.linear.apply(params, x) ** 2).sum(-1)
    params, x = {"w": normal(3, 2)}, normal(7, 3)
    got = jax.jit(lambda: noise_scale(example_norms(loss)(params, x, grads=True)))()
    g = 2 * np.einsum("ni,no->nio", x, x @ params["w"]).reshape(7, 6)
    trace = np.trace(np.cov(g.T))
    square = (g.mean(0) ** 2).sum() - trace / 7
    close(list(got), [trace / square, trace, square])


@pytest.mark.usefixtures("unchecked")
def test_noise_scale_refuses():
    with pytest.raises(DTypeError, match="grads=True gives norms and gradient"):
        noise_scale(jnp.ones(2))
    with pytest.raises(ValueRangeError, match="of 1 example no spread"):
        noise_scale(ExampleNorms(jnp.ones(1), {}, jnp.ones(1)))


# ---- nothing where nobody counts --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "op", ["linear", "conv", "embedding", "layer_norm", "multihead", "linear_cross_entropy"]
)
def test_apply_is_what_it_is_without_a_meter(op):
    case = next(c for c in CASES if c.op == op and has_squares(c))
    args, options = case.draw()
    plain = case.module.apply.__wrapped__  # without the decorator
    program = lambda f: str(jax.make_jaxpr(lambda *a: jax.vjp(f, *a)[0])(*args))
    f, g = (lambda *a, f=f: f(*a, **options) for f in (case.module.apply, plain))
    assert program(f) == program(g)


def test_meters_nest():
    seen = []

    def meter(f, formula, at, args, options):
        seen.append((f.__name__, at))
        with rules.metered(None):
            return f(*args, **options)

    with rules.metered(meter):
        fn.multihead.apply(draw(lambda key: fn.multihead.init(key, 4, 2)), normal(2, 3, 4))
        fn.linear_cross_entropy.apply(normal(2, 3), normal(3, 5), integers(5, 2))
        fn.relu.apply(normal(2))
    assert seen == [("_project", 0)] * 4 + [("apply", 1)]


# ---- the formulas, where the laws' cases do not go --------------------------------------------------------


@pytest.mark.parametrize("t", [1, 2, 9])
def test_a_product_both_ways(t):
    x, dy = normal(N, t, 5), normal(N, t, 7)
    assert _squares.by_gram(t, 5, 7) == (t <= 2)
    want = (np.einsum("nti,nto->nio", x, dy) ** 2).sum((1, 2))
    close(_squares.product(x, dy), jnp.asarray(want))


@pytest.mark.parametrize("t", [1, 6])
def test_squares_and_rows_of_a_loss_in_chunks(t):
    """By Gram matrices for one position, by the product for six: as of the logits whole."""
    x, w, labels, dy = normal(2, t, 3), normal(3, 7), integers(7, 2, t), normal(2, t) + 0.5
    ids = jnp.array([[0, 6, -1], [3, 3, 7]], jnp.int32)
    loss, options = fn.linear_cross_entropy, {"label_smoothing": 0.1, "ignore_index": 2, "softcap": 2.0}

    def all_of(x, w, dy):
        pull = jax.vmap(lambda x, l, dy: jax.vjp(lambda w: loss.reference(x, w, l, **options), w)[1](dy)[0])
        dw = pull(x, labels, dy)
        rows = jnp.take_along_axis(dw.mT, jnp.clip(ids, 0, 6)[..., None], 1)
        rows = jnp.where(((ids >= 0) & (ids < 7))[..., None], rows, 0)
        squares = loss.squares(x, w, labels, dy, chunk=3, **options)
        got = squares, loss.rows(x, w, labels, ids, dy, chunk=3, **options)
        return got, ((dw**2).sum((1, 2)), rows)

    close(*jax.jit(all_of)(x, w, dy))


def test_rows_are_added():
    table, x = {"w": normal(4, 3)}, normal(2, 4, 3)
    close(fn.embedding.add(table, x, jnp.arange(4)), x + table["w"][None])


# ---- what would be wrong is refused, while the loss is traced ---------------------------------------------

W = {"w": np.ones((2, 2))}
X = np.ones((N, 2))


def linear(params, x):
    return fn.linear.apply(params, x)


def in_loop(params, x):
    return jax.lax.scan(lambda x, _: (linear(params, x), None), x, None, length=2)[0].sum(-1)


def carried(params, x):
    return jax.lax.scan(lambda c, _: ((c[0], linear(c[0], c[1])), None), (params, x), None, length=2)[0][
        1
    ].sum(-1)


@jax.custom_jvp
def custom(params, x):
    return linear(params, x)


custom.defjvp(lambda primals, tangents: jax.jvp(linear, primals, tangents))


def penalty(params, x):
    return (jax.grad(lambda x: linear(params, x).sum())(x) ** 2).sum(-1)


def in_training(params, x):
    state = {"mean": jnp.zeros(2), "var": jnp.ones(2)}
    return fn.batch_norm.apply({"w": params["w"][0]}, state, x, train=True)[0].sum(-1)


def sinks(params, x):
    heads = {
        name: {"w": np.ones(shape)} for name, shape in zip("qkvo", [(2, 1, 2)] * 3 + [(1, 2, 2)], strict=True)
    }
    return fn.multihead.apply({**heads, "sinks": params["w"][0, :1]}, x[:, None]).sum((1, 2))


def half(params, x, column):
    return linear({"w": params["w"][:, column : column + 1]}, x)


def flat(params, x):
    return linear(params, jnp.stack([x, x], 1).reshape(-1, 2)).reshape(-1, 4).sum(-1)


def changed(params, x):
    return fn.rms_norm.apply({"w": params["w"][0]}, x)


labels = np.zeros(N)
REFUSED = {
    "raw": (lambda p, x: (x * p["w"][0]).sum(-1), "is used outside of an operation"),
    "beside": (lambda p, x: linear(p, x).sum(-1) + (p["w"] ** 2).sum(), "is used outside of an operation"),
    "matmul": (lambda p, x: fn.matmul.apply(x, p["w"]).sum(-1), "is used outside of an operation"),
    "picked": (lambda p, x: p["w"][x[:, 0].astype(int)].sum(-1), "is used outside of an operation"),
    "scaled": (lambda p, x: linear({"w": 2 * p["w"]}, x).sum(-1), "is used outside of an operation"),
    "sinks": (sinks, "is used outside of an operation"),
    "custom": (lambda p, x: custom(p, x).sum(-1), "inside of custom_jvp_call"),
    "computed": (lambda p, x: linear({"w": linear(p, x)[:2]}, x).sum(-1), "parameters that are computed"),
    "in part": (lambda p, x: linear({**p, "b": np.ones(2)}, x).sum(-1), "or in part"),
    "twice": (lambda p, x: linear(p, linear(p, x)).sum(-1), "is used more than once"),
    "overlapping": (lambda p, x: (half(p, x, 0) + half(p, x, 1)).sum(-1), "parts that may overlap"),
    "in a loop": (in_loop, "is used more than once"),
    "carried": (carried, "is carried by a loop|more than once"),
    "in training": (in_training, "batch_norm.apply gives no example a gradient of its own"),
    "derivative": (penalty, "differentiates an operation"),
    "vmap": (lambda p, x: jax.vmap(lambda x: linear(p, x[None]).sum())(x), "inside of jax.vmap"),
    "one example": (lambda p, x: jax.vmap(lambda x: linear(p, x).sum())(x), "inside of jax.vmap"),
    "flat": (flat, "axis of examples"),
    "other axis": (lambda p, x: linear(p, jnp.stack([x] * N)).sum((0, 2)), "axis of examples"),
    "mean": (lambda p, x: linear(p, x).mean(), "one number per example"),
    "several": (linear, "one number per example"),
    "metrics": (lambda p, x: (linear(p, x).sum(-1), {}), "array of losses"),
    "labels": (lambda p, x: linear(p, x)[:, 0] - labels, "another number of examples than 3"),
}  # fmt: skip


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    loss, text = REFUSED[name]
    with pytest.raises((StructureError, ShapeError, DTypeError), match=text) as caught:
        jax.eval_shape(example_norms(loss), W, X)
    assert None not in (caught.value.path, caught.value.expected, caught.value.actual)


@pytest.mark.usefixtures("unchecked")
def test_refused_batches():
    loss = lambda params, batch: linear(params, batch["x"]).sum(-1)
    with pytest.raises(
        ShapeError, match=r"batch\['y'\] has not the number of examples that batch\['x'\] has"
    ):
        example_norms(loss)(W, {"x": X, "y": X[1:]})
    with pytest.raises(StructureError, match="the batch has no examples"):
        example_norms(loss)(W, {"x": X[:0]})
    with pytest.raises(ValueRangeError, match="bound"):
        clip_per_example(loss, 0.0)
    with pytest.raises(ShapeError, match=r"linear\.apply: x has 3 features"):  # the loss's own fault
        example_norms(loss)(W, {"x": np.ones((N, 3))})


@pytest.mark.usefixtures("unchecked")
def test_a_loss_that_changes_is_refused():
    calls = itertools.count()

    def loss(params, x):
        return (linear if next(calls) < 2 else changed)(params, x).sum(-1)

    with pytest.raises(StructureError, match="calls other operations each time"):
        example_norms(loss)(W, X)


USES = "one use of each element; or a whole table in embedding.apply, then, transposed, in linear.apply or "
test_errors = golden(
    [
        (
            lambda: example_norms(lambda p, x: linear(p, linear(p, x)).sum(-1))(W, X),
            StructureError,
            "analysis.example_norms: params['w'] is used more than once, or in parts that may overlap.\n"
            f"  expected  {USES}linear_cross_entropy.apply\n"
            "  got       linear.apply, linear.apply",
        ),
        (
            lambda: example_norms(lambda p, x: linear(p, x).mean())(W, X),
            ShapeError,
            "analysis.example_norms: the loss does not give one number per example.\n"
            "  expected  [n]     (traced with n = 39)\n"
            "  got       float64[]\n"
            "  hint      a mean or sum over examples is no example's own: leave it out.",
        ),
    ]
)


def test_a_key_goes_to_the_loss():
    def loss(params, x, key):
        return fn.linear.apply(params, fn.dropout.apply(x, rate=0.5, key=key)).sum(-1)

    params, x = {"w": jnp.ones((8, 1))}, jnp.ones((2, 8))
    norms = example_norms(loss)
    whole, dropped = jax.jit(lambda: (norms(params, x), norms(params, x, key=jax.random.key(0))))()
    assert whole.tolist() == pytest.approx([8**0.5] * 2)
    assert (abs(whole - dropped) > 0.1).any()
