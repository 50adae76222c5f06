"""Checkpoints: exact, whole or not at all, never deleted too early, and refused where they do not fit."""

import errno
import hashlib
import json
import os
import random
import re
import resource
import shutil
import subprocess
import sys
import textwrap
import threading
import warnings
from collections import namedtuple
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import funcnet as fn
from funcnet import _safetensors, _tensors
from funcnet.errors import DTypeError, FileFormatError, StructureError, ValueRangeError
from funcnet.train import Checkpoints, State, _pieces, checkpoints
from tests.budget import many
from tests.errors import golden

DTYPES = [*_safetensors.CODES.values(), *_tensors.AS_BYTES]


def make(step: int = 0, seed: int = 0, **more: Any) -> State:
    """A small state, its numbers by `seed`, in NumPy: nothing is compiled."""
    rng = np.random.default_rng(seed)
    params = {
        "w": rng.standard_normal((5, 3)).astype(np.float32),
        "layers": [rng.standard_normal(7).astype(jnp.bfloat16), None],
    }
    opt_state = (optax.ScaleByAdamState(np.int32(seed), params, params), optax.EmptyState())
    return State(**{
        "step": np.int32(step),
        "params": params,
        "opt_state": opt_state,
        "key": np.array([0, 7], np.uint32),
        "model_state": None,
        **more,
    })  # fmt: skip


def tiny(step: int, seed: int) -> State:
    """The least that is a state, for tests that write a hundred times."""
    return State(np.int32(step), {"w": np.full(3, seed, np.float32)}, (), np.zeros(2, np.uint32))


def save(made: Checkpoints, state: State, finish: bool = True, **more: Any) -> None:
    entries: dict[str, Any] = {"position": None, "log": None, "seconds": 0.0, "record": {}}
    (made.finish if finish else made.save)(state, **{**entries, **more})


def bits(leaf: Any) -> Any:
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return "key", str(jax.random.key_impl(leaf)), bits(jax.random.key_data(leaf))
    if isinstance(leaf, jax.Array | np.ndarray | np.generic):
        kind = ("jax", leaf.weak_type) if isinstance(leaf, jax.Array) else type(leaf)
        return kind, leaf.dtype, leaf.shape, np.asarray(leaf).tobytes()
    return type(leaf), repr(leaf)


def assert_same(actual: Any, expected: Any) -> None:
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    assert [*map(bits, jax.tree.leaves(actual))] == [*map(bits, jax.tree.leaves(expected))]


def contents(path: str) -> bytes:
    return Path(path).read_bytes()


def tree(folder: Any) -> list[str]:
    return sorted(name for name in os.listdir(folder) if name != ".lock")


@pytest.fixture
def folder(tmp_path):
    return str(tmp_path / "run" / "checkpoints")


# --- what comes back --------------------------------------------------------------------------------------


def every_kind() -> dict[str, Any]:
    rng = np.random.default_rng(0)

    def array(name: str, shape: tuple[int, ...]) -> np.ndarray:
        dtype = jnp.dtype(name)
        if name in ("bool", "int2", "int4", "uint2", "uint4", "float4_e2m1fn"):
            return rng.integers(0, 2, shape).astype(dtype)
        return rng.integers(0, 256, (*shape, dtype.itemsize), np.uint8).view(dtype)[..., 0]

    numpy = {f"{name}{len(shape)}": array(name, shape) for name in DTYPES for shape in ((), (2, 3), (0, 2))}
    on_device = {name: jnp.asarray(leaf) for name, leaf in numpy.items() if leaf.shape == (2, 3)}
    keys = {"key": jax.random.key(3), "keys": jax.random.split(jax.random.key(3, impl="rbg"), 3)}
    weak = {"weak": jnp.asarray(0.5), "weak.int": jnp.broadcast_to(jnp.asarray(3), (2, 2))}
    return {
        "numpy": numpy,
        "jax": on_device,
        **keys,
        **weak,
        "scalar": np.float32(2),
        "python": [True, 3, 0.1, 1j],
        "odd names": {"a.b": np.int8(1), "a": {"b": np.int8(2)}, "~": np.int8(3), "": np.int8(4), "é": None},
        "numbers": {0: np.int8(5), 1: ()},
    }


def test_what_comes_back_is_what_was_saved(folder):
    state = make(3, model_state=every_kind())
    made = Checkpoints(folder)
    save(made, state)
    restored, history = made.restore(state)
    assert_same(restored, state)
    assert len(history) == 0
    assert restored.model_state["weak"].weak_type


def test_the_next_step_may_reuse_the_memory_of_the_state(folder):
    """The step donates: what is written is the state as it was, also while it is still being written."""
    optimizer = optax.adam(0.1)
    step = fn.train.make_step(lambda params, batch: jnp.mean((batch - params["w"]) ** 2), optimizer)
    state = fn.train.init({"w": jnp.zeros(40_000)}, optimizer, key=jax.random.key(0))
    made = Checkpoints(folder, keep=9)
    expected, buffers = {}, set()
    for number in range(1, 4):
        state, _ = step(state, jnp.full(40_000, 3.0 * number))
        expected[number] = jax.tree.map(np.array, state)
        save(made, state, finish=False)
        buffers |= {copy.ctypes.data for copy in made._kept["params.w"][1].values()}
    save(made, state)
    assert len(buffers) == 1  # the memory on the host is taken once
    for number, wanted in expected.items():
        restored, _ = Checkpoints(folder).restore(state, step=number)
        assert_same(jax.tree.map(np.asarray, restored), wanted)
    state, _ = step(restored, jnp.zeros(40_000))  # and what was restored is an ordinary state
    assert int(state.step) == 4


def test_arrays_come_back_where_they_are_in_the_given_state(folder):
    mesh = jax.make_mesh((4,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.NamedSharding(mesh, jax.P("x"))
    columns = jax.NamedSharding(mesh, jax.P(None, "x"))
    everywhere = jax.NamedSharding(mesh, jax.P())
    array = np.arange(48, dtype=np.float32).reshape(4, 12)
    state = make(
        1,
        params={
            "rows": jax.device_put(array, split),
            "columns": jax.device_put(array, columns),
            "all": jax.device_put(array, everywhere),
            "one": jax.device_put(array, jax.devices()[2]),
            "free": jnp.asarray(array),
        },
        key=jax.device_put(jax.random.key_data(jax.random.key(1)), everywhere),
    )
    made = Checkpoints(folder)
    save(made, state)
    other = state._replace(params={**state.params, "rows": jax.device_put(array * 0, columns)})
    restored, _ = made.restore(other)
    assert_same(restored, state)
    for ours, theirs in zip(jax.tree.leaves(restored), jax.tree.leaves(other), strict=True):
        if isinstance(theirs, jax.Array):
            assert (ours.sharding, ours.committed) == (theirs.sharding, theirs.committed)


def test_a_state_of_shapes_is_enough(folder):
    state = jax.tree.map(jnp.asarray, make(1))
    save(Checkpoints(folder), state)
    restored, _ = Checkpoints(folder).restore(jax.eval_shape(lambda: state))
    assert_same(restored, state)


@pytest.mark.parametrize("most", [2500, 4000])
def test_a_leaf_larger_than_a_piece_is_split(folder, monkeypatch, most):
    monkeypatch.setattr(_pieces, "PIECE", most)
    rng = np.random.default_rng(0)
    shapes = [(500,), (3, 300), (1, 2, 400), (2, 1500), (0, 4000), (20, 3, 5)]
    state = make(1, params={str(i): rng.standard_normal(shape) for i, shape in enumerate(shapes)})
    state = state._replace(model_state=rng.standard_normal(300) + 1j)
    save(Checkpoints(folder), state)
    assert_same(Checkpoints(folder).restore(state)[0], state)
    files = [name for name in os.listdir(f"{folder}/step-1") if name.startswith("piece")]
    assert len(files) > 10
    assert all(os.path.getsize(f"{folder}/step-1/{name}") <= most for name in files)
    index = json.loads(contents(f"{folder}/step-1/index.json"))
    names = [name for piece in index["pieces"] for name in piece["tensors"]]
    assert "params.0" not in names
    assert "params.0.@0" in names


def test_pieces_have_a_number_of_tensors_at_most(folder, monkeypatch):
    monkeypatch.setattr(_pieces, "_MOST_TENSORS", 3)
    save(Checkpoints(folder), make(1))
    assert_same(Checkpoints(folder).restore(make())[0], make(1))
    assert len(os.listdir(f"{folder}/step-1")) == 1 + 3  # 9 leaves, and the index


def test_boxes_of_any_kind_are_read(folder, monkeypatch):
    """As several processes will write them, each what it holds: here columns."""

    def columns(shape, itemsize, most):
        if len(shape) < 2:
            return [((0,) * len(shape), shape)]
        return [((0, column), (shape[0], 1)) for column in range(shape[1])]

    monkeypatch.setattr(_pieces, "_boxes", columns)
    save(Checkpoints(folder), make(1))
    assert_same(Checkpoints(folder).restore(make())[0], make(1))


def test_load_opens_a_piece(folder):
    state = make(1)
    save(Checkpoints(folder), state)
    loaded = fn.load(f"{folder}/step-1/piece-00000.safetensors")
    np.testing.assert_array_equal(loaded["params"]["w"], state.params["w"])


def test_nothing_there(folder):
    state = make()
    made = Checkpoints(folder)
    restored, history = made.restore(state)
    assert restored is state
    assert list(history) == []
    assert made.steps() == []
    assert made.begin(state) is None
    assert not os.path.exists(folder)
    os.makedirs(f"{folder}/.step-3.tmp-01234567")  # of a writer that was killed
    assert made.restore(state)[0] is state


def test_steps_are_numbers(folder):
    made = Checkpoints(folder, keep=9)
    for step in (9, 10, 100):
        save(made, make(step))
    for name in ("step-011", "step-12x", "step--1", ".step-13", "step-14.old", "step-15"):
        os.makedirs(f"{folder}/{name}")
    assert made.steps() == [9, 10, 100]
    os.rmdir(f"{folder}/step-15")
    assert int(made.restore(make())[0].step) == 100


# --- of another run ---------------------------------------------------------------------------------------


def differences(made: Checkpoints, state: State, **options: Any) -> list[str]:
    with pytest.raises(StructureError) as caught:
        made.restore(state, **options)
    return str(caught.value).splitlines()[1:]


def test_the_state_of_adam_is_not_that_of_adabelief(folder):
    params = {"w": jnp.ones((2, 3))}
    states = {
        name: fn.train.init(params, getattr(optax, name)(0.1), key=jax.random.key(0))
        for name in ("adam", "adabelief", "adamw", "sgd")
    }
    made = Checkpoints(folder)
    save(made, states["adam"])
    assert differences(made, states["adabelief"]) == [
        "  class       'opt_state.0': the state has optax._src.transform.ScaleByBeliefState, "
        "the checkpoint optax._src.transform.ScaleByAdamState"
    ]
    assert differences(made, states["adamw"]) == [
        "  class       'opt_state.2': the state has optax._src.base.EmptyState, the checkpoint None"
    ]
    assert differences(made, states["sgd"]) == [
        "  unexpected  'opt_state.0.count': int32[]",
        "  unexpected  'opt_state.0.mu.w': float64[2, 3]",
        "  unexpected  'opt_state.0.nu.w': float64[2, 3]",
        "  class       'opt_state.0': the state has optax._src.base.EmptyState, "
        "the checkpoint optax._src.transform.ScaleByAdamState",
    ]


def test_all_differences_are_listed_at_once(folder):
    save(Checkpoints(folder, config={"d": 4, "seed": 0, "lr": [1, 2]}), make(2))
    Other = namedtuple("Other", "w")
    params = {
        "w": np.zeros((5, 4), np.float32),
        "b": np.zeros(3),
        "layers": (np.zeros(7, np.float16), Other(1)),
    }
    made = Checkpoints(folder, config={"d": 5, "lr": [1, 3], "name": "x" * 100})
    lines = differences(made, make(params=params, model_state={}))
    assert lines == [
        "  missing     'params.b': float64[3]",
        "  missing     'params.layers.1.w': Python int",
        "  mismatched  'params.layers.0': the state has float16[7], the checkpoint bfloat16[7]",
        "  mismatched  'params.w': the state has float32[5, 4], the checkpoint float32[5, 3]",
        "  class       'params.layers': the state has builtins.tuple, the checkpoint builtins.list",
        f"  class       'params.layers.1': the state has {__name__}.Other, the checkpoint None",
        "  class       'model_state': the state has builtins.dict, the checkpoint None",
        "  config      config.d: 5 here, 4 in the checkpoint",
        "  config      config.lr: [1, 3] here, [1, 2] in the checkpoint",
        f"  config      config.name: '{'x' * 58}…, which the checkpoint lacks",
        "  config      config.seed: 0, which the config here lacks",
    ]  # fmt: skip
    assert len(differences(made, make(params=params), params_only=True)) == 6  # of the weights alone


def test_a_whole_checkpoint_of_another_run_does_not_give_way_to_an_older_one(folder):
    save(Checkpoints(folder, keep=2), make(1))
    save(Checkpoints(folder, keep=2), make(2, params={"other": np.zeros(2)}))
    assert "  missing     'params.w': float32[5, 3]" in differences(Checkpoints(folder), make())


@pytest.mark.parametrize("config", [None, 3, "a", {"a": [1, {"b": None}], "c": (1, 2)}])
def test_an_equal_config_is_accepted(folder, config):
    save(Checkpoints(folder, config=config), make(1))
    assert int(Checkpoints(folder, config=config).restore(make())[0].step) == 1
    assert int(Checkpoints(folder).restore(make())[0].step) == 1  # nothing is compared


@pytest.mark.parametrize(("there", "here"), [(1, 1.0), (1, True), ({"a": 1}, [1]), (None, 0)])
def test_a_config_of_other_types_is_another(folder, there, here):
    save(Checkpoints(folder, config=there), make(1))
    assert len(differences(Checkpoints(folder, config=here), make())) == 1


def test_an_average_starts_at_the_weights(folder):
    saved = jax.tree.map(jnp.asarray, make(5, seed=1))
    save(Checkpoints(folder), saved)
    wide = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), saved.params)
    fresh = saved._replace(step=jnp.int32(0), average=wide, decay=jnp.float32(0.9))
    restored, _ = Checkpoints(folder).restore(fresh, params_only=True)
    assert_same(restored.average, jax.tree.map(lambda leaf: leaf.astype(jnp.float32), saved.params))
    assert restored.average["w"] is not restored.params["w"]  # each can be donated


def test_only_the_weights(folder):
    saved = make(5, seed=1, model_state={"mean": np.ones(2)})
    save(Checkpoints(folder, config={"lr": 1}), saved, position={"n": 3})
    fresh = make(0, seed=2, model_state={"mean": np.zeros(2)}, opt_state=optax.EmptyState())
    made = Checkpoints(folder, config={"lr": 2})
    restored, history = made.restore(fresh, params_only=True)
    assert_same(restored, fresh._replace(params=saved.params, model_state=saved.model_state))
    assert len(history) == 0
    with pytest.raises(ValueRangeError, match="no checkpoint"):
        Checkpoints(f"{folder}/other").restore(fresh, params_only=True)
    with pytest.raises(ValueRangeError, match="later steps"):  # a new run takes a new folder
        made.begin(restored)


# --- damage -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", autouse=True)
def two_written(tmp_path_factory):
    """A folder with two checkpoints, for `two` to copy."""
    TWO.append(str(tmp_path_factory.mktemp("two") / "checkpoints"))
    for step in (1, 2):
        save(Checkpoints(TWO[-1]), make(step, seed=step))


TWO: list[str] = []


def two(folder: str) -> Checkpoints:
    shutil.copytree(TWO[-1], folder)
    return Checkpoints(folder, keep=9)


def piece(folder: str, step: int = 2) -> str:
    return f"{folder}/step-{step}/piece-00000.safetensors"


def flip(path: str, place: int, bit: int = 0) -> None:
    with open(path, "r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 1 << bit]))


def cut(path: str, length: int) -> None:
    with open(path, "r+b") as file:
        file.truncate(length)


def offset(folder: str, name: str) -> int:
    with open(piece(folder), "rb") as file:
        return _tensors.read_tensors(file, "")[0][name].begin


def swap(folder: str, name: str) -> None:
    shutil.copy(f"{folder}/step-1/{name}", f"{folder}/step-2/{name}")


def append(path: str) -> None:
    with open(path, "ab") as file:
        file.write(b"\0")


def link(path: str) -> None:
    os.rename(path, f"{path}.there")
    os.symlink(f"{path}.there", path)


def into_folder(path: str) -> None:
    os.remove(path)
    os.mkdir(path)


def more_tensors(folder: str) -> None:
    """A piece whose own checksums are right, with one tensor more."""
    loaded = fn.load(piece(folder))
    fn.save(piece(folder), {**loaded, "more": np.zeros(3, np.float32)})


DAMAGE = {
    "flip in a tensor": (lambda f: flip(piece(f), offset(f, "params.w") + 5), r"'params.w' .* is damaged"),
    "flip in a header": (lambda f: flip(piece(f), 200), r"piece-00000"),
    "flip in a length": (lambda f: flip(piece(f), 0), r"piece-00000"),
    "flip in the index": (lambda f: flip(f"{f}/step-2/index.json", 150), r"the index is damaged"),
    "cut piece": (lambda f: cut(piece(f), os.path.getsize(piece(f)) - 1), r"piece-00000.* cut short"),
    "empty piece": (lambda f: cut(piece(f), 0), r"piece-00000.*an empty file"),
    "longer piece": (lambda f: append(piece(f)), r"bytes after its last tensor"),
    "cut index": (lambda f: cut(f"{f}/step-2/index.json", 300), r"the index is damaged"),
    "empty index": (lambda f: cut(f"{f}/step-2/index.json", 0), r"no index"),
    "no piece": (lambda f: os.remove(piece(f)), r"No such file.*piece-00000"),
    "no index": (lambda f: os.remove(f"{f}/step-2/index.json"), r"No such file.*index.json"),
    "link for a piece": (lambda f: link(piece(f)), r"piece-00000.*symbolic link"),
    "link for the index": (lambda f: link(f"{f}/step-2/index.json"), r"index.json.*symbolic link"),
    "link for the folder": (lambda f: link(f"{f}/step-2"), r"step-2: this is not a folder"),
    "folder for a piece": (lambda f: into_folder(piece(f)), r"piece-00000.*not a regular file"),
    "file for the folder": (
        lambda f: (shutil.rmtree(f"{f}/step-2"), Path(f"{f}/step-2").touch()),
        r"step-2: this is not a folder",
    ),
    "piece of another step": (lambda f: swap(f, "piece-00000.safetensors"), r"not the piece of the index"),
    "index of another step": (lambda f: swap(f, "index.json"), r"index of another step"),
    "more tensors": (more_tensors, r"not the piece of the index"),
}  # fmt: skip


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_one_is_named_and_the_one_before_is_taken(folder, kind):
    made = two(folder)
    damage, text = DAMAGE[kind]
    damage(folder)
    with pytest.warns(
        UserWarning, match=r"(?s)checkpoint of step 1 is taken, damaged is:\n  step 2: .*"
    ) as caught:
        restored, _ = made.restore(make())
    assert re.search(text, str(caught[0].message), re.DOTALL)
    assert_same(restored, make(1, seed=1))
    with pytest.raises(FileFormatError, match=text):  # asked for by name, it does not give way
        made.restore(make(), step=2)
    flip(piece(folder, 1), 300)
    with pytest.raises(FileFormatError) as error:
        made.restore(make())
    assert [f"step {step}: " in str(error.value) for step in (1, 2)] == [True, True]


def damages(folder: str, number: int) -> list[tuple[str, Any]]:
    """So many places, over the length of each file, and kinds of damage."""
    rng, kinds = random.Random(0), []
    for path in (piece(folder), f"{folder}/step-2/index.json"):
        size = os.path.getsize(path)
        for i in range(number // 4):
            place = min(size - 1, i * size // (number // 4) + rng.randrange(max(1, 4 * size // number)))
            kinds.append((path, lambda path, place=place: flip(path, place, rng.randrange(8))))
            kinds.append((path, lambda path, place=place: cut(path, place)))
    return kinds


def wrongly_loaded(folder: str, number: int) -> int:
    made, wrong = two(folder), 0
    for path, damage in damages(folder, number):
        whole = contents(path)
        damage(path)
        assert contents(path) != whole
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            restored, _ = made.restore(make())
        wrong += int(restored.step) != 1
        with open(path, "wb") as file:
            file.write(whole)
    assert int(made.restore(make())[0].step) == 2
    return wrong


def test_no_damage_loads(folder):
    assert wrongly_loaded(folder, 16) == 0


@pytest.mark.slow
def test_none_of_many_damages_loads(folder):
    assert wrongly_loaded(folder, many(400)) == 0


def reseal(folder: str, change: Any) -> None:
    """An index that says something else, and has the right checksum of it."""
    path = f"{folder}/step-2/index.json"
    content = json.loads(contents(path))
    content = change(content) or content
    text = _safetensors.json_bytes({**content, "sha256": "0" * 64})
    with open(path, "wb") as file:
        file.write(_tensors.seal(text)[1])


def first_part(content: dict[str, Any]) -> dict[str, Any]:
    return content["pieces"][0]["tensors"]["params.w"]


HOSTILE = [
    lambda c: c.update(version=2),
    lambda c: c.update(version="1"),
    lambda c: c.update(step="2"),
    lambda c: c.update(seconds=None),
    lambda c: c.update(position=3),
    lambda c: c.update(more=3),
    lambda c: c.pop("nodes") and None,
    lambda c: c.update(log=["/etc/passwd", 3]),
    lambda c: c.update(log=["metrics.jsonl", -3]),
    lambda c: c.update(log=["metrics.jsonl"]),
    lambda c: c.update(leaves=[]),
    lambda c: c["leaves"]["params.w"].update(dtype="object"),
    lambda c: c["leaves"]["params.w"].update(dtype=["float32"]),
    lambda c: c["leaves"]["params.w"].update(shape=[-5, 3]),
    lambda c: c["leaves"]["params.w"].update(shape=[2**70]),
    lambda c: c["leaves"]["params.w"].update(key="nothing"),
    lambda c: c["leaves"]["params.w"].update(python="float"),
    lambda c: c["leaves"]["params.w"].update(other="x"),
    lambda c: c["pieces"][0].update(file="../../step-1/piece-00000.safetensors"),
    lambda c: c["pieces"][0].update(file=3),
    lambda c: c["pieces"].append(c["pieces"][0]),
    lambda c: c.update(pieces=[]),
    lambda c: first_part(c).update(start=[1, 0]),
    lambda c: first_part(c).update(start=[0]),
    lambda c: first_part(c).update(shape=[4, 3]),
    lambda c: first_part(c).update(leaf="nothing"),
    lambda c: first_part(c).update(leaf=["x"]),
    lambda c: c["pieces"][0]["tensors"].update(more={**first_part(c), "start": [0, 0], "shape": [1, 3]}),
    lambda c: c["pieces"][0]["tensors"].pop("params.w") and None,
    lambda c: c["pieces"][0].update(sha256="0" * 63),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(HOSTILE)))
def test_an_index_with_a_right_checksum_is_still_checked(folder, number):
    made = two(folder)
    reseal(folder, HOSTILE[number])
    with pytest.raises(FileFormatError):
        made.restore(make(), step=2)


@pytest.mark.parametrize(
    "text", [b'"seconds":0.0,"seconds":0.0', b'"seconds":NaN', b'"seconds":' + b"[" * 10**5]
)
def test_an_index_is_strict_json(folder, text):
    made = two(folder)
    path = f"{folder}/step-2/index.json"
    content = re.sub(rb'"sha256":"[0-9a-f]{64}"', b'"sha256":"' + b"0" * 64 + b'"', contents(path), count=1)
    with open(path, "wb") as file:
        file.write(_tensors.seal(content.replace(b'"seconds":0.0', text))[1])
    with pytest.raises(FileFormatError, match="not valid JSON"):
        made.restore(make(), step=2)


def test_sizes_are_limited_before_memory_is_taken(folder):
    made = two(folder)
    reseal(
        folder,
        lambda c: c["leaves"]["params.w"].update(shape=[2**40, 3]) or first_part(c).update(shape=[2**40, 3]),
    )
    assert differences(made, make()) == [
        "  mismatched  'params.w': the state has float32[5, 3], the checkpoint float32[1099511627776, 3]"
    ]
    with open(f"{folder}/step-2/index.json", "ab") as file:
        file.truncate(2**40)
    with pytest.raises(FileFormatError, match="too long"):
        made.restore(make(), step=2)


# --- the write --------------------------------------------------------------------------------------------


class Death(BaseException):
    """The process dies: whatever it would still do to the disk does not happen."""


class Mortal:
    """Counts the moments before and after the calls that change the disk, and dies at one of them."""

    NAMES = ("open", "mkdir", "fsync", "replace", "rmdir", "unlink", "remove")

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at: int):
        self.left, self.dead = at, False
        for name in self.NAMES:
            monkeypatch.setattr(os, name, self.mortal(name, getattr(os, name)))

    def mortal(self, name: str, real: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.moment()
            result = None if name == "fsync" else real(*args, **kwargs)
            self.moment()
            return result

        return call

    def moment(self) -> None:
        self.dead = self.dead or self.left == 0
        self.left -= 1
        if self.dead:
            raise Death


def deaths(folder: str, write: Any, check: Any) -> int:
    """Let `write` die at every moment, and `check` what is left; how many moments there were."""
    before = f"{folder}.before"
    for step in (1, 2):
        save(Checkpoints(before, keep=2), tiny(step, step))
    for moment in range(1000):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(before, folder)
        made = Checkpoints(folder, keep=2)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(threading, "excepthook", lambda _: None)
            mortal = Mortal(patch, moment)
            write(made)
            made.wait()
        check(mortal.dead)
        if not mortal.dead:
            return moment
    raise AssertionError("it never ends")


def test_killed_at_any_moment_there_is_a_whole_one(folder):
    after = []

    def check(dead):
        restored, _ = Checkpoints(folder).restore(tiny(0, 0))  # and no warning
        after.append(int(restored.step))
        assert_same(restored, tiny(after[-1], after[-1]))
        if dead and len(after) % 5 == 0:  # the next one cleans up
            save(Checkpoints(folder, keep=2), tiny(4, 4))
            assert tree(folder) == [f"step-{after[-1]}", "step-4"]

    moments = deaths(folder, lambda made: save(made, tiny(3, 3), finish=False), check)
    assert moments > 25
    assert after == sorted(after)
    assert set(after) == {2, 3}
    assert tree(folder) == ["step-2", "step-3"]


def test_killed_while_one_is_replaced_there_is_the_old_or_the_new(folder):
    seeds = []

    def check(dead):
        restored, _ = Checkpoints(folder).restore(tiny(0, 0))
        seeds.append(int(restored.params["w"][0]))
        assert_same(restored, tiny(2, seeds[-1]))
        if dead and len(seeds) % 5 == 0:
            save(Checkpoints(folder, keep=2), tiny(2, 5))
            assert tree(folder) == ["step-1", "step-2"]
            assert_same(Checkpoints(folder).restore(tiny(0, 0))[0], tiny(2, 5))

    deaths(folder, lambda made: save(made, tiny(2, 9), finish=False), check)
    assert seeds == sorted(seeds)
    assert set(seeds) == {2, 9}
    assert tree(folder) == ["step-1", "step-2"]


@pytest.mark.parametrize("name", Mortal.NAMES[:4])
@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EROFS])
def test_an_error_of_the_disk_loses_nothing_and_the_next_write_tries_again(folder, monkeypatch, name, code):
    made = two(folder)
    with monkeypatch.context() as patch:

        def fail(*_: Any, **__: Any):
            raise OSError(code, os.strerror(code))

        patch.setattr(os, name, fail)
        save(made, make(3, seed=3), finish=False)
        made.wait()
        text = made.error() or ""
        assert text.startswith("the checkpoint of step 3 is not written: [Errno ")
        assert os.strerror(code) in text
        assert made.error() is None  # said once
        with pytest.raises(
            OSError, match=r"the last checkpoint, of step 4, is not written: .*Errno"
        ) as caught:
            save(made, last := make(4, seed=4))
        assert caught.value.state is last
        assert caught.value.errno == code
        assert made.error() is None
    assert [step for step in made.steps() if step < 3] == [1, 2]
    save(made, make(5, seed=5))
    assert made.error() is None
    assert made.steps()[-1] == 5
    assert not [name for name in tree(folder) if name.startswith(".")]


def test_a_full_disk(folder):
    made = two(folder)
    large = make(3, params={"w": np.zeros(200_000, np.float32)})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            save(made, large)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert tree(folder) == ["step-1", "step-2"]
    save(made, large)
    assert made.steps() == [1, 2, 3]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder(folder):
    made = two(folder)
    os.chmod(folder, 0o500)
    try:
        with pytest.raises(PermissionError):
            save(made, make(3))
    finally:
        os.chmod(folder, 0o700)
    assert made.steps() == [1, 2]


def test_what_is_read_back_wrong_is_not_written(folder, monkeypatch):
    """The disk takes every byte, and gives one back that is another."""
    made = Checkpoints(folder, keep=1)
    save(made, make(1))
    with monkeypatch.context() as patch:
        real = _pieces.write_file

        def lying(path, chunks):
            real(path, chunks)
            if path.endswith(".safetensors"):
                flip(path, os.path.getsize(path) - 1)

        patch.setattr(_pieces, "write_file", lying)
        save(made, make(2), finish=False)
        made.wait()
        assert "is damaged" in (made.error() or "")
    assert tree(folder) == ["step-1"]


def test_order_of_the_write(folder, monkeypatch):
    """Pieces, index, their folder, the name, the folder above; then the old is renamed and deleted."""
    made = Checkpoints(folder, keep=1)
    save(made, make(1))
    calls = []
    fsync, replace, rmtree = os.fsync, os.replace, shutil.rmtree

    def name(path: str) -> str:
        return re.sub("tmp-[0-9a-f]+", "tmp", os.path.relpath(path, folder))

    monkeypatch.setattr(
        os, "fsync", lambda d: (calls.append(name(os.readlink(f"/proc/self/fd/{d}"))), fsync(d))
    )
    monkeypatch.setattr(os, "replace", lambda a, b: (calls.append(f"{name(a)} -> {name(b)}"), replace(a, b)))
    monkeypatch.setattr(shutil, "rmtree", lambda a, **_: (calls.append(f"delete {name(a)}"), rmtree(a)))
    save(made, make(2))
    assert calls == [
        ".step-2.tmp/piece-00000.safetensors",
        ".step-2.tmp/index.json",
        ".step-2.tmp",
        ".step-2.tmp -> step-2",
        ".",
        "step-1 -> .step-1.tmp",
        "delete .step-1.tmp",
    ]


def test_the_log_is_on_the_disk_before_the_checkpoint(folder, monkeypatch):
    made = Checkpoints(folder)
    log = f"{folder}/../metrics.jsonl"
    os.makedirs(folder)
    with open(log, "w", encoding="utf-8") as file:
        file.write('{"step": 1}\n')
    synced, fsync = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda d: (synced.append(os.readlink(f"/proc/self/fd/{d}")), fsync(d)))
    save(made, make(1), log=(log, 12))
    assert os.path.basename(synced[0]) == "metrics.jsonl"


def test_two_writers_do_not_meet(folder, monkeypatch):
    made, other = Checkpoints(folder), Checkpoints(folder)
    save(made, make(1))
    with checkpoints._locked(folder):
        save(other, make(2), finish=False)
        other.wait()
        assert "another process is writing a checkpoint to" in (other.error() or "")
    save(other, make(2))
    assert made.steps() == [1, 2]


def test_a_disk_without_locks_will_do(folder, monkeypatch):
    def refuse(*_: Any):
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(checkpoints.fcntl, "flock", refuse)
    save(Checkpoints(folder), make(1))
    assert Checkpoints(folder).steps() == [1]


def test_one_write_at_a_time_and_the_next_waits_for_it(folder, monkeypatch):
    made = Checkpoints(folder, keep=9)
    running, most, real = [0], [0], _pieces.write

    def counted(*args: Any) -> Any:
        running[0] += 1
        most[0] = max(most[0], running[0])
        pieces = real(*args)
        running[0] -= 1
        return pieces

    monkeypatch.setattr(_pieces, "write", counted)
    for step in range(1, 6):
        save(made, make(step, seed=step), finish=False)
    save(made, make(5, seed=5))  # just that was written: nothing more to do
    assert most == [1]
    for step in range(1, 6):
        assert_same(made.restore(make(), step=step)[0], make(step, seed=step))


def test_finish_writes_nothing_twice(folder, monkeypatch):
    made = Checkpoints(folder)
    save(made, make(3), finish=False, record={"loss": 1.0})
    made.wait()
    before = os.stat(f"{folder}/step-3").st_ino
    save(made, make(3), record={"loss": 1.0})
    assert os.stat(f"{folder}/step-3").st_ino == before
    save(made, make(3), record={"loss": 1.0, "eval_loss": 0.5})
    assert os.stat(f"{folder}/step-3").st_ino != before
    assert tree(folder) == ["step-3"]


def test_what_cannot_be_stored_is_said_before_the_first_step(folder):
    state = make(0, params={"a": np.array(["text"]), "b": object(), "c": np.ma.zeros(2), "w": np.zeros(2)})
    with pytest.raises(StructureError) as caught:
        Checkpoints(folder).begin(state)
    assert [line[:14] for line in str(caught.value).splitlines()[1:]] == [
        f"  'params.{name}': "[:14] for name in "abc"
    ]
    deep: Any = np.zeros(1)
    for _ in range(150):
        deep = [deep]
    with pytest.raises(StructureError, match="nested deeper than 100"):
        Checkpoints(folder).begin(make(0, params=deep))


@pytest.mark.slow
def test_a_program_that_ends_waits_for_the_write(folder):
    program = f"""
        import numpy as np
        from funcnet.train import Checkpoints, State
        state = State(np.int32(1), {{"w": np.ones(5_000_000)}}, (), np.zeros(2, np.uint32))
        Checkpoints({folder!r}).save(state, position=None, log=None, seconds=0.0, record={{}})
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=True, timeout=100)
    assert Checkpoints(folder).steps() == [1]


# --- which stay -------------------------------------------------------------------------------------------


def expected_to_stay(
    records: dict[int, float | None], keep: int, keep_every: int | None, mode: str
) -> set[int]:
    steps = sorted(records)
    stay = set(steps[-keep:]) | {step for step in steps if keep_every and step % keep_every == 0}
    values = [(value, step) for step, value in records.items() if value is not None and np.isfinite(value)]
    if values:
        sign = -1 if mode == "max" else 1
        stay.add(min(values, key=lambda pair: (sign * pair[0], pair[1]))[1])
    return stay


@pytest.mark.parametrize("seed", range(4))
def test_which_stay_by_a_model(folder, seed, monkeypatch):
    """Random saves, failing ones among them, by new objects now and then, against the rule in a few lines."""
    rng = random.Random(seed)
    keep, keep_every, mode = rng.randint(1, 3), rng.choice([None, 3, 4]), rng.choice(["max", "min"])
    options: Any = {"keep": keep, "keep_every": keep_every, "best": ("eval_accuracy", mode)}
    made = Checkpoints(folder, **options)
    disk: dict[int, float | None] = {}
    left = [0]

    def fsync(_: int) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise OSError(errno.EIO, "EIO")

    monkeypatch.setattr(os, "fsync", fsync)
    step = 0
    for _ in range(20):
        step += rng.randint(0, 2) or (step == 0)
        value = rng.choice([None, float("nan"), 0.1, 0.2, 0.3, 0.3, float("inf")])
        record = {"step": step} if value is None else {"step": step, "eval_accuracy": value}
        if rng.random() < 0.3:
            made = Checkpoints(folder, **options)
        left[0] = rng.choice([0, 0, 0, 1, 2, 3])  # not the last, when it has its name
        fails = left[0] > 0
        save(made, tiny(step, step), finish=False, record=record)
        made.wait()
        assert (made.error() is None) == (not fails)
        if not fails:
            disk[step] = value
            disk = {number: disk[number] for number in expected_to_stay(disk, keep, keep_every, mode)}
        assert made.steps() == sorted(disk)
        if disk:
            assert_same(made.restore(tiny(0, 0))[0], tiny(max(disk), max(disk)))


def test_the_best_is_the_earliest_of_equals_and_never_nan(folder):
    made = Checkpoints(folder, every=100, keep=1, best=("eval_accuracy", "max"))
    for step, value in enumerate([0.5, 0.9, float("nan"), 0.9, 0.1], 1):
        save(made, make(step), record={"eval_accuracy": value})
    assert made.steps() == [2, 5]
    made = Checkpoints(folder, every=100, keep=1, best=("eval_accuracy", "max"))  # read from the disk
    assert not made.due(6, {"eval_accuracy": 0.9})
    assert not made.due(6, {"eval_accuracy": float("nan")})
    assert not made.due(6, {"eval_accuracy": "0.95"})
    assert not made.due(6, {"loss": 0.0})
    assert made.due(6, {"eval_accuracy": 0.91})
    assert Checkpoints(folder, every=100, best=("eval_loss", "min")).due(6, {"eval_loss": 3})


def test_the_best_counts_while_it_is_written(folder, monkeypatch):
    made = Checkpoints(folder, every=100, best=("eval_loss", "min"))
    go = threading.Event()
    real = _pieces.write
    monkeypatch.setattr(_pieces, "write", lambda *args: (go.wait(), real(*args)))
    save(made, make(1), finish=False, record={"eval_loss": 0.5})
    assert not made.due(2, {"eval_loss": 0.6})
    assert made.due(2, {"eval_loss": 0.4})
    go.set()
    made.wait()


def test_one_that_cannot_be_deleted_is_no_lost_checkpoint(folder, monkeypatch):
    made = Checkpoints(folder, keep=1)
    save(made, make(1))

    def refuse(*_: Any, **__: Any):
        raise OSError(errno.EPERM, "not yours")

    monkeypatch.setattr(shutil, "rmtree", refuse)
    save(made, make(2))
    assert made.error() == "older checkpoints than step 2 cannot be deleted: [Errno 1] not yours"
    assert made.steps() == [2]


def test_when_one_is_due(folder, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(checkpoints.time, "monotonic", lambda: now[0])
    made = Checkpoints(folder, every=5)
    assert [step for step in range(1, 12) if made.due(step)] == [5, 10]
    now[0] = 1e6
    assert not made.due(11)  # `every` alone: the clock says nothing
    for options, seconds in (({}, 600.0), ({"minutes": 0.5}, 30.0), ({"minutes": 2, "every": 1000}, 120.0)):
        made = Checkpoints(folder, **options)
        now[0] += 1e6
        made.begin(make())
        now[0] += seconds - 1
        assert not made.due(1)
        now[0] += 1
        assert made.due(1)
        save(made, make(1))
        assert not made.due(2)
        shutil.rmtree(folder)


# --- going on ---------------------------------------------------------------------------------------------


class Batches:
    def __init__(self):
        self.at = None

    def seek(self, position):
        if position.get("seed") == "other":
            raise ValueRangeError("batches: of other data.")
        self.at = position


def log_of(folder: str, steps: int) -> tuple[str, int]:
    os.makedirs(folder, exist_ok=True)
    path = os.path.join(os.path.dirname(folder), "metrics.jsonl")
    lines = [json.dumps({"step": step, "loss": 1 / step}) + "\n" for step in range(1, steps + 3)]
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(lines)
    return path, sum(map(len, lines[:steps]))


def test_a_run_goes_on_where_it_was(folder, tmp_path):
    log = log_of(folder, 3)
    save(Checkpoints(folder), make(3), position={"epoch": 2, "batch": 5}, log=log, seconds=12.5)
    os.rename(tmp_path / "run", tmp_path / "moved")  # the paths are relative
    moved = str(tmp_path / "moved" / "checkpoints")
    made, batches = Checkpoints(moved), Batches()
    state, history = made.restore(make(), batches)
    assert batches.at == {"epoch": 2, "batch": 5}
    assert list(history) == [{"step": step, "loss": 1 / step} for step in (1, 2, 3)]
    resumed = made.begin(state)
    assert resumed is not None
    assert resumed == (3, history, 12.5, log[1])
    assert made.begin(state) is None  # once
    made.restore(make(), batches)
    with pytest.raises(ValueRangeError, match="later steps"):
        made.begin(make(2))  # not what was restored


def test_a_lost_log_is_said(folder):
    path, size = log_of(folder, 3)
    save(Checkpoints(folder), make(3), log=(path, size))
    with open(path, "r+b") as file:
        file.truncate(size - 2)
    made = Checkpoints(folder)
    with pytest.warns(UserWarning, match=r"the records of the run up to step 3 end early: .*metrics\.jsonl"):
        state, history = made.restore(make())
    assert [record["step"] for record in history] == [1, 2]
    assert made.begin(state).log_bytes == size
    with open(path, "w", encoding="utf-8") as file:
        file.write("[]\n" * 100)
    with pytest.warns(UserWarning, match="up to step 3 are lost: .*line 1 is no record"):
        made.restore(make())
    os.remove(path)
    with pytest.warns(UserWarning, match="lost: .*No such file"):
        state, history = made.restore(make())
    assert len(history) == 0
    assert made.begin(state).log_bytes is None


def test_batches_that_cannot_be_put_back_are_said(folder):
    save(Checkpoints(folder), make(3), position={"n": 1})
    with pytest.warns(UserWarning, match="the batches have no `seek`: they begin anew, not where step 3 was"):
        Checkpoints(folder).restore(make(), iter([]))
    Checkpoints(folder).restore(make())  # none: nothing to say
    save(Checkpoints(folder), make(4))
    with pytest.warns(UserWarning, match="the batches had no `position`"):
        Checkpoints(folder).restore(make(), Batches())
    save(Checkpoints(folder), make(5), position={"seed": "other"})
    with pytest.raises(ValueRangeError, match="other data"):
        Checkpoints(folder).restore(make(), Batches())


def test_going_on_from_an_earlier_one_sets_later_ones_aside(folder):
    made = Checkpoints(folder, keep=9)
    for step in (1, 2, 3, 4):
        save(made, make(step, seed=step))
    state, _ = made.restore(make(), step=2)
    assert made.begin(state) is not None
    assert made.steps() == [1, 2, 3, 4]  # until there is something new
    save(made, make(3, seed=33))
    assert made.steps() == [1, 2, 3]
    assert_same(made.restore(make())[0], make(3, seed=33))
    assert [re.sub("-[0-9a-f]{8}$", "", name) for name in tree(folder)] == [
        "step-1",
        "step-2",
        "step-3",
        "step-4.aside",
    ]
    save(made, make(5))
    assert made.steps() == [1, 2, 3, 5]


def test_a_damaged_one_is_set_aside_when_the_run_goes_on(folder):
    made = two(folder)
    flip(piece(folder), 400)
    with pytest.warns(UserWarning, match="damaged"):
        state, _ = made.restore(make())
    made.begin(state)
    save(made, make(3))
    assert made.steps() == [1, 2, 3]  # its index is whole, and it is older than what is new
    save(made, make(2))
    assert_same(made.restore(make(), step=2)[0], make(2))


def test_a_new_run_does_not_take_the_folder_of_another(folder):
    two(folder)
    with pytest.raises(ValueRangeError) as caught:
        Checkpoints(folder).begin(make(1))
    assert str(caught.value) == (
        f"train.Checkpoints: {folder} has checkpoints of later steps than this run begins at.\n"
        "  expected  checkpoints up to step 1, or none\n"
        "  got       checkpoints up to step 2\n"
        "  hint      restore(state, batches) goes on from the newest; a new run takes a new folder"
    )
    assert Checkpoints(folder).begin(make(2)) is None


# --- arguments --------------------------------------------------------------------------------------------

test_errors = golden([
    (
        lambda: Checkpoints(3),
        DTypeError,
        "train.Checkpoints: folder is not a path.\n"
        "  expected  folder: a str or a pathlib.Path\n"
        "  got       folder: 3 (int)",
    ),
    (
        lambda: Checkpoints("x", every=0),
        ValueRangeError,
        "train.Checkpoints: every is 0.\n  expected  1 or more\n  got       0",
    ),
    (
        lambda: Checkpoints("x", keep=0),
        ValueRangeError,
        "train.Checkpoints: keep is 0.\n  expected  1 or more\n  got       0",
    ),
    (
        lambda: Checkpoints("x", keep_every=1.5),
        DTypeError,
        "train.Checkpoints: keep_every is no integer.\n"
        "  expected  an integer, 1 or more\n"
        "  got       1.5 (float)",
    ),
    (
        lambda: Checkpoints("x", minutes="1"),
        DTypeError,
        "train.Checkpoints: minutes is no number.\n"
        "  expected  a number, above 0\n"
        "  got       '1' (str)",
    ),
    (
        lambda: Checkpoints("x", minutes=float("nan")),
        ValueRangeError,
        "train.Checkpoints: minutes is nan.\n  expected  above 0\n  got       nan",
    ),
    (
        lambda: Checkpoints("x", best="eval_loss"),
        DTypeError,
        "train.Checkpoints: best is not the name of a number and its direction.\n"
        '  expected  ("eval_accuracy", "max"), or "min"\n'
        "  got       'eval_loss'",
    ),
    (
        lambda: Checkpoints("x", config={"a": {1, 2}}),
        DTypeError,
        "train.Checkpoints: config is no JSON value: Object of type set is not JSON serializable.\n"
        "  expected  None, True, False, numbers that are finite, texts, and lists and dicts of them\n"
        "  got       a dict",
    ),
    (
        lambda: Checkpoints("x").restore({"w": 1}),
        DTypeError,
        "train.Checkpoints.restore: state is none.\n"
        "  expected  a state from train.init\n"
        "  got       a dict",
    ),
    (
        lambda: Checkpoints("/nowhere").restore(make(), step=3),
        ValueRangeError,
        "train.Checkpoints.restore: there is no checkpoint of step 3 in /nowhere.\n"
        "  expected  a folder with checkpoints\n"
        "  got       3",
    ),
])  # fmt: skip


def test_a_step_that_is_not_there(folder):
    with pytest.raises(ValueRangeError, match="expected  one of 1, 2"):
        two(folder).restore(make(), step=3)


def test_every_byte_is_under_a_checksum(folder):
    """By the format's page, without our code: index, headers, tensors."""
    save(Checkpoints(folder), make(1))
    text = contents(f"{folder}/step-1/index.json")
    index = json.loads(text)
    assert hashlib.sha256(text.replace(index["sha256"].encode(), b"0" * 64)).hexdigest() == index["sha256"]
    for entry in index["pieces"]:
        content = contents(f"{folder}/step-1/{entry['file']}")
        length = int.from_bytes(content[:8], "little")
        head = content[: 8 + length]
        assert (
            hashlib.sha256(head.replace(entry["sha256"].encode(), b"0" * 64)).hexdigest() == entry["sha256"]
        )
        rows = json.loads(head[8:])
        notes = json.loads(rows.pop("__metadata__")["funcnet"])["tensors"]
        assert sum(row["data_offsets"][1] - row["data_offsets"][0] for row in rows.values()) + len(
            head
        ) == len(content)
        for name, row in rows.items():
            begin, end = row["data_offsets"]
            assert hashlib.sha256(content[len(head) :][begin:end]).hexdigest() == notes[name]["sha256"]
