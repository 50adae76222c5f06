"""One declaration, two directions; and every tensor that does not fit is named."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from funcnet.errors import StructureError
from funcnet.hub.names import Names, Tensor, from_tensors, heads, linear, norm, output, to_tensors

L, D, H, E = 3, 5, 2, 7


def fused(kind, part):
    return {
        "w": Tensor("h.{layer}.qkv.weight", "d (h e) -> d h e", part=part, along=1),
        "b": Tensor("h.{layer}.qkv.bias", "(h e) -> h e", part=part),
    }


NAMES = Names(
    {
        "blocks": {
            "attention": {
                **{kind: fused(kind, i) for i, kind in enumerate("qkv")},
                "o": output("h.{layer}.o"),
            },
            "norm": norm("h.{layer}.n", bias=False),
        },
        "cls": Tensor("cls", "1 1 d -> d"),
        "head": linear("head"),
        "patches": {"w": Tensor("conv", "d c p q -> (p q c) d")},
        "plain": [heads("last", bias=False)],
    },
    sizes={"p": 2, "q": 3, "c": 4},
    renamed=[(r"^model\.", ""), (r"gamma$", "weight")],
    ignored=[r"h\.\d+\.mask"],
    tied={"copy": "cls"},
)


def params(h_kv=H):
    """Of the structure of NAMES; queries may have more heads than keys and values."""
    rng = np.random.default_rng(0)
    array = lambda *shape: rng.normal(size=shape).astype(np.float32)
    each = {"q": H, "k": h_kv, "v": h_kv}
    return {
        "blocks": {
            "attention": {
                **{kind: {"w": array(L, D, h, E), "b": array(L, h, E)} for kind, h in each.items()},
                "o": {"w": array(L, H, E, D), "b": array(L, D)},
            },
            "norm": {"w": array(L, D)},
        },
        "cls": array(D),
        "head": {"w": array(D, 11), "b": array(11)},
        "patches": {"w": array(2 * 3 * 4, D)},
        "plain": [{"w": array(D, H, E)}],
    }


@pytest.mark.parametrize("h_kv", [H, 1])
def test_tensors_are_what_the_declaration_says(h_kv):
    tree = params(h_kv)
    tensors = to_tensors(NAMES, tree, tree)
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    layer = {"qkv.weight": (D, (H + 2 * h_kv) * E), "qkv.bias": ((H + 2 * h_kv) * E,)}
    layer |= {"o.weight": (D, H * E), "o.bias": (D,), "n.weight": (D,)}
    assert shapes == {
        **{f"h.{i}.{name}": shape for i in range(L) for name, shape in layer.items()},
        "cls": (1, 1, D),
        "head.weight": (11, D),
        "head.bias": (11,),
        "conv": (D, 4, 2, 3),
        "last.weight": (H * E, D),
    }
    attention = tree["blocks"]["attention"]
    for i in range(L):
        parts = [attention[kind]["w"][i].reshape(D, -1) for kind in "qkv"]
        assert np.array_equal(tensors[f"h.{i}.qkv.weight"], np.concatenate(parts, 1))
        parts = [attention[kind]["b"][i].reshape(-1) for kind in "qkv"]
        assert np.array_equal(tensors[f"h.{i}.qkv.bias"], np.concatenate(parts))
        assert np.array_equal(tensors[f"h.{i}.o.weight"], attention["o"]["w"][i].reshape(-1, D).T)
    assert np.array_equal(tensors["head.weight"], tree["head"]["w"].T)
    for p, q, c in np.ndindex(2, 3, 4):
        row = tree["patches"]["w"][(p * 3 + q) * 4 + c]
        assert np.array_equal(tensors["conv"][:, c, p, q], row)


@pytest.mark.parametrize("h_kv", [H, 1])
def test_there_and_back_is_exact(h_kv):
    tree = params(h_kv)
    again = from_tensors(NAMES, tree, to_tensors(NAMES, tree, tree), "here")
    assert jax.tree.structure(again) == jax.tree.structure(tree)
    assert jax.tree.all(jax.tree.map(np.array_equal, again, tree))


def test_dtypes_are_those_of_the_tensors():
    tree = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), params())
    again = from_tensors(NAMES, params(), to_tensors(NAMES, tree, tree), "here")
    assert {leaf.dtype for leaf in jax.tree.leaves(again)} == {jnp.dtype("bfloat16")}


def test_other_names_copies_and_what_is_ignored():
    tensors = to_tensors(NAMES, params(), params())
    other = {f"model.{name}": tensor for name, tensor in tensors.items()}
    other["model.h.1.n.gamma"] = other.pop("model.h.1.n.weight")
    other |= {"h.0.mask": np.zeros(3, bool), "copy": tensors["cls"].copy()}
    again = from_tensors(NAMES, params(), other, "here")
    assert jax.tree.all(jax.tree.map(np.array_equal, again, params()))


def test_everything_that_does_not_fit_is_listed(unchecked):
    tensors = to_tensors(NAMES, params(), params())
    tensors["head.weight"] = tensors["head.weight"].T
    tensors["h.2.qkv.bias"] = tensors["h.2.qkv.bias"][:-1]
    tensors["h.0.n.weight"] = tensors["h.0.n.weight"].astype(np.int8)
    tensors["model.cls"] = tensors["cls"]
    tensors["copy"] = tensors["cls"] + 1
    tensors["wte"] = tensors.pop("last.weight")
    tensors["other"] = tensors.pop("h.1.o.weight")
    with pytest.raises(StructureError) as error:
        from_tensors(NAMES, params(), tensors, "here")
    assert str(error.value) == (
        "load: here: the tensors do not fit the model:\n"
        "  twice       'cls': as 'cls' and as 'model.cls'\n"
        '  missing     \'h.1.o.weight\': float[5, 14]     (params["blocks"]["attention"]["o"]["w"])\n'
        '  missing     \'last.weight\': float[14, 5]     (params["plain"][0]["w"])\n'
        "  unexpected  'other': float32[5, 14]\n"
        "  unexpected  'wte': float32[14, 5]\n"
        "  mismatched  'h.2.qkv.bias': float32[41], expected float[42]"
        '     (params["blocks"]["attention"]["q"]["b"])\n'
        '  mismatched  \'h.0.n.weight\': int8[5], expected float[5]     (params["blocks"]["norm"]["w"])\n'
        '  mismatched  \'head.weight\': float32[5, 11], expected float[11, 5]     (params["head"]["w"])\n'
        "  unequal     'copy': not a copy of 'cls'"
    )


def test_params_of_another_model_are_refused(unchecked):
    tree = params()
    tree["bias"] = tree.pop("cls")
    del tree["blocks"]["norm"]
    tree["head"]["w"] = tree["head"]["w"].T
    with pytest.raises(StructureError) as error:
        to_tensors(NAMES, params(), tree)
    assert str(error.value) == (
        "save: params are not those of config:\n"
        '  missing     params["blocks"]["norm"]["w"]: [3, 5]\n'
        '  missing     params["cls"]: [5]\n'
        '  unexpected  params["bias"]\n'
        '  mismatched  params["head"]["w"]: float32[11, 5], expected [5, 11]'
    )
