"""Where each leaf lies: rules by the names of axes, what stays whole and why, and what is refused."""

import jax
import numpy as np
import pytest

import funcnet as fn
from funcnet.errors import DTypeError, StructureError, ValueRangeError
from funcnet.nets import transformer

KEY = jax.random.key(0)
CONFIG = transformer.Config(vocabulary=64, context=16, layers=2, heads=4, kv_heads=2, d=32, bias=False)


def mesh(*sizes, names=("data", "tensor")):
    return jax.make_mesh(sizes, names)


def spec_of(shardings, *path):
    for key in path:
        shardings = shardings[key]
    return shardings.spec


def test_names_decide_and_the_leftmost_has_an_axis_of_the_mesh():
    specs = transformer.specs(CONFIG)
    got = fn.shard.of(specs, fn.shard.FSDP | fn.shard.TP, mesh(2, 2), whole_below=1)
    assert spec_of(got, "tokens", "w") == jax.P("tensor", "data")
    assert spec_of(got, "blocks", "attention", "q", "w") == jax.P(None, "data", "tensor", None)
    assert spec_of(got, "blocks", "attention", "o", "w") == jax.P(None, "tensor", None, "data")
    both = fn.shard.of(specs, {"d": "data", "v": "data"}, mesh(2, 2), whole_below=1)
    assert spec_of(both, "tokens", "w") == jax.P("data", None)
    several = fn.shard.of(specs, {"d": ("data", "tensor")}, mesh(2, 2), whole_below=1)
    assert spec_of(several, "norm", "w") == jax.P(("data", "tensor"))


def test_what_does_not_divide_and_what_is_small_stays_whole():
    specs = transformer.specs(CONFIG)
    got = fn.shard.of(specs, fn.shard.TP, mesh(1, 4), whole_below=1)
    assert spec_of(got, "blocks", "attention", "k", "w") == jax.P(None, None, None, None)  # two heads of keys
    assert spec_of(got, "blocks", "attention", "q", "w")[2] == "tensor"
    assert spec_of(fn.shard.of(specs, fn.shard.FSDP, mesh(4, 1)), "norm", "w") == jax.P(None)


def test_table_says_what_stayed_whole_and_why():
    text = fn.shard.table(
        {"w": fn.spec.Spec((6, 8), "float32", ("d", "h")), "b": fn.spec.Spec((8,), "float32", ("h",))},
        {"d": "tensor", "h": "tensor", "c": "data"},
        mesh(1, 4),
        whole_below=10,
    )
    assert text.splitlines() == [
        "leaf  axes                 bytes a device",
        "b     h 8                              32  whole: fewer than 10 elements",
        "w     d 6, h 8 / tensor 4              48  d whole: 4 does not divide 6",
        "all   data 1 × tensor 4                80",
    ]


def test_params_are_born_where_they_lie_with_the_numbers_of_one_device():
    with jax.set_mesh(mesh(2, 2)):
        init = lambda key: transformer.init(key, CONFIG)
        params = fn.shard.init(init, KEY, transformer.specs(CONFIG), fn.shard.FSDP, whole_below=1)
    assert params["tokens"]["w"].sharding.spec == jax.P(None, "data")
    want = jax.jit(init)(KEY)
    for got, one in zip(jax.tree.leaves(params), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(np.asarray(got), np.asarray(one), rtol=1e-6)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("rules", "kind", "says"),
    [
        ({"d": "date"}, ValueRangeError, "hint      'data'?"),
        ({"dd": "data"}, ValueRangeError, "names of axes: d, d_hidden, e, h, h_kv, layers, t, v"),
        ({"d": 3}, DTypeError, "rules are not a dict of names"),
        ({"h": "data", "d": jax.P("data")}, DTypeError, "got       rules['d']: a P"),
        ([("d", "data")], DTypeError, "rules are not a dict of names"),
    ],
)
def test_rules_that_make_no_sense(rules, kind, says):
    with pytest.raises(kind) as raised:
        fn.shard.of(transformer.specs(CONFIG), rules, mesh(2, 2))
    assert says in str(raised.value)


@pytest.mark.usefixtures("unchecked")
def test_specs_of_other_params():
    other = {"w": fn.spec.Spec((64, 32), "float32", ("v", "d"))}
    with pytest.raises(StructureError, match=r"shard\.init: specs are those of another tree"):
        fn.shard.init(lambda key: transformer.init(key, CONFIG), KEY, other, fn.shard.FSDP, mesh(2, 2))


def test_without_a_mesh():
    with pytest.raises(ValueRangeError, match="there is no mesh") as raised:
        fn.shard.of(transformer.specs(CONFIG), fn.shard.FSDP)
    assert "jax.set_mesh(mesh)" in raised.value.hint
