"""A checkpoint looked at, and made one plain safetensors file."""

import os
import shutil
import tracemalloc
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

import funcnet as fn
from funcnet._numbers import of_bytes
from funcnet.cli import main
from funcnet.train import Checkpoints, State, _pieces
from tests.train.test_checkpoints import assert_same, bits, flip, save


def state_of(step: int) -> State:
    split = jax.NamedSharding(jax.make_mesh((4,), ("x",)), jax.P("x"))
    rng = np.random.default_rng(0)
    params = {
        "layers": [{"w": jax.device_put(rng.standard_normal((8, 6)), split), "b": None}, (jnp.ones(3),)],
        "a.b": jnp.asarray(rng.standard_normal(5), jnp.bfloat16),
        "complex": rng.standard_normal(2) + 1j,
        "nothing": {},
    }
    return State(jnp.int32(step), params, {"count": jnp.int32(3)}, jax.random.key(7))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    run = tmp_path_factory.mktemp("run")
    for step in (1, 3):
        save(Checkpoints(run / "checkpoints"), state_of(step))
    return str(run)


def checkpoint(capsys: Any, *args: Any) -> tuple[int, str, str]:
    return main(["checkpoint", *map(str, args)]), *capsys.readouterr()


def test_what_it_holds(folder, capsys):
    code, out, err = checkpoint(capsys, folder)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == f"{folder}/checkpoints/step-3: after step 3, every byte is right"
    assert [line.split() for line in lines[1:6]] == [
        ["part", "leaves", "size"],
        ["step", "1", "4", "B"],
        ["params", "4", "450", "B"],
        ["opt_state", "1", "4", "B"],
        ["key", "1", "8", "B"],
    ]
    assert lines[6].startswith("1 pieces of 10 tensors; written by python ")


@pytest.mark.parametrize("given", ["", "/checkpoints", "/checkpoints/step-3"])
def test_one_file_of_the_params(folder, capsys, tmp_path, given):
    file = tmp_path / "params.safetensors"
    code, out, err = checkpoint(capsys, folder + given, "--to", file)
    size = of_bytes(os.path.getsize(file))
    assert (code, out, err) == (0, f"{file}: 4 tensors, {size}, params after step 3\n", "")
    params = fn.load(file)
    expected = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)), state_of(3).params)
    assert_same(params, expected)
    fn.save(tmp_path / "other.safetensors", expected)
    assert file.read_bytes() == (tmp_path / "other.safetensors").read_bytes()  # as if it had been saved so
    others = load_file(file)
    np.testing.assert_array_equal(others["layers.0.w"], np.asarray(state_of(3).params["layers"][0]["w"]))


def test_other_parts(folder, capsys, tmp_path):
    whole, one, old = (tmp_path / f"{name}.safetensors" for name in ("whole", "one", "old"))
    assert checkpoint(capsys, folder, "--to", whole, "--of", "all")[0] == 0
    loaded = fn.load(whole, like=state_of(3))
    assert [*map(bits, jax.tree.leaves(loaded.key))] == [*map(bits, jax.tree.leaves(state_of(3).key))]
    with pytest.raises(fn.errors.StructureError, match="'State'"):
        fn.load(whole)
    assert checkpoint(capsys, folder, "--to", one, "--of", "params.layers.0.w")[0] == 0
    assert fn.load(one).shape == (8, 6)
    assert checkpoint(capsys, folder, "--to", old, "--of", "step", "--step", 1)[0] == 0
    assert int(fn.load(old)) == 1


def test_memory_is_that_of_the_largest_leaf(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(_pieces, "PIECE", 100_000)
    monkeypatch.setattr("funcnet.train._plain.PIECE", 100_000)
    params = {str(i): np.full(50_000, i) for i in range(20)}  # 400 kB each
    state = State(jnp.int32(1), params, (), jnp.zeros(2))
    save(Checkpoints(tmp_path), state)
    tracemalloc.start()
    assert checkpoint(capsys, tmp_path, "--to", tmp_path / "p.safetensors")[0] == 0
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 5 * 400_000
    np.testing.assert_array_equal(fn.load(tmp_path / "p.safetensors", like=params)["7"], params["7"])


def test_damage_is_named_and_leaves_no_file(folder, capsys, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(folder, copy)
    piece = copy / "checkpoints/step-3/piece-00000.safetensors"
    flip(str(piece), os.path.getsize(piece) - 1)
    for more in ((), ("--to", tmp_path / "p.safetensors", "--of", "all")):
        code, out, err = checkpoint(capsys, copy, *more)
        assert (code, out) == (2, "")
        assert "step-3/piece-00000.safetensors: tensor" in err
        assert "is damaged" in err
    assert os.listdir(tmp_path) == ["run"]
    os.remove(piece)
    assert "piece-00000.safetensors" in checkpoint(capsys, copy)[2]


def test_what_is_refused(folder, capsys, tmp_path):
    there = tmp_path / "there.safetensors"
    there.touch()
    (tmp_path / "empty").mkdir()
    wrong = {
        (there,): f"{there} is no folder: give a checkpoint, a folder of them, or a run folder",
        (tmp_path / "empty",): f"{tmp_path}/empty holds no checkpoint",
        (folder, "--step", "2"): f"{folder}/checkpoints has no checkpoint of step 2: there are 1, 3",
        (folder, "--to", there): f"{there} is there already: name a new file",
        (folder, "--to", "a.npz"): "a.npz is no .safetensors file (funcnet checkpoint --help)",
        (folder, "--to", tmp_path / "p.safetensors", "--of", "average"): (
            f"{folder}/checkpoints/step-3 has nothing at 'average': there are "
            "step, params, opt_state, key, all"
        ),
    }
    for args, problem in wrong.items():
        code, out, err = checkpoint(capsys, *args)
        assert (code, out, err) == (2, "", f"funcnet checkpoint: {problem}\n")
    assert sorted(os.listdir(tmp_path)) == ["empty", "there.safetensors"]
