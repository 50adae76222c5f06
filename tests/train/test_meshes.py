"""Checkpoints of arrays that are split over devices: from any mesh to any other, bit by bit."""

import errno
import json
import os
import re
import threading
from contextlib import nullcontext
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from funcnet.errors import FileFormatError, ValueRangeError
from funcnet.train import Checkpoints, State, _pieces, checkpoints
from funcnet.train.agreement import Peers, Said
from tests.train.test_checkpoints import assert_same, contents, cut, flip, save, tree

AUTO, EXPLICIT = jax.sharding.AxisType.Auto, jax.sharding.AxisType.Explicit
PLACES = {
    "one device": None,
    "1 x 1": ((1, 1), AUTO),
    "1 x 1, explicit": ((1, 1), EXPLICIT),
    "4": ((4,), AUTO),
    "4, explicit": ((4,), EXPLICIT),
    "2 x 2": ((2, 2), AUTO),
    "2 x 2, explicit": ((2, 2), EXPLICIT),
}


@cache
def mesh(place: str) -> Any:
    shape, kind = PLACES[place] or ((1,), AUTO)
    return jax.make_mesh(shape, ("x", "y")[: len(shape)], axis_types=(kind,) * len(shape))


def on(place: str, leaf: Any, *axes: str | None) -> jax.Array:
    """A leaf split over those of the axes that the mesh has; on one device, as a user has it."""
    if PLACES[place] is None:
        return jnp.asarray(leaf) if isinstance(leaf, np.ndarray) else leaf
    names = mesh(place).axis_names
    spec = jax.P(*(axis if axis in names else None for axis in axes))
    return jax.device_put(leaf, jax.NamedSharding(mesh(place), spec))


def everything(place: str) -> State:
    """A state with leaves of each kind: whole, split along one axis or two, in parts on several devices."""
    rng = np.random.default_rng(0)

    def array(dtype: str, *shape: int) -> np.ndarray:
        return rng.integers(0, 2, (*shape, 8)).astype(np.uint8)[..., 0].astype(dtype)

    params = {
        "both": on(place, rng.standard_normal((8, 4)).astype(np.float32), "x", "y"),
        "columns": on(place, rng.standard_normal((3, 8)).astype(jnp.bfloat16), None, "x"),
        "partly": on(place, rng.standard_normal((2, 4)), "y", None),
        "whole": on(place, rng.standard_normal(5).astype(np.float16)),
        "empty": on(place, np.zeros((0, 4), np.float32), None, "x"),
        "emptier": on(place, np.zeros((4, 0), np.int8), "x", "y"),
        "numpy": rng.standard_normal((4, 2)),
    }
    kinds = {
        name: on(place, array(name, 4, 2), "x") for name in ("bool", "int4", "float8_e4m3fn", "complex128")
    }
    keys = on(place, jax.random.split(jax.random.key(3, impl="rbg"), 4), "x")
    rest = {"weak": on(place, jnp.asarray(0.5)), "scalar": np.float32(2), "python": 3, "none": None}
    step, key = (on(place, leaf) for leaf in (np.array(3, np.int32), jax.random.key(7)))
    return State(step, params, (kinds, keys), key, rest)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A checkpoint of the same numbers from each place."""
    made = {}
    for place in PLACES:
        made[place] = str(tmp_path_factory.mktemp("meshes") / "checkpoints")
        save(Checkpoints(made[place]), everything(place))
    return made


def described(leaf: Any) -> Any:
    """A leaf as the shape, the type and the place that it shall have."""
    if not isinstance(leaf, jax.Array) or getattr(leaf, "weak_type", False):
        return leaf
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding if leaf.committed else None)


@pytest.mark.parametrize("to", PLACES)
def test_any_mesh_to_any_other(folders, to):
    expected = everything(to)
    zeros = jax.tree.map(described, expected)
    for folder in folders.values():
        restored, _ = Checkpoints(folder).restore(zeros)
        assert_same(restored, expected)
        for ours, theirs in zip(jax.tree.leaves(restored), jax.tree.leaves(expected), strict=True):
            if isinstance(theirs, jax.Array):
                assert (ours.sharding, ours.committed) == (theirs.sharding, theirs.committed)
                assert jax.typeof(ours) == jax.typeof(theirs)


@pytest.mark.parametrize("to", ["2 x 2", "2 x 2, explicit"])
def test_within_a_mesh_that_is_set(folders, to):
    """What is made eagerly then lies on all of it: the restored arrays lie where they are asked for."""
    with jax.set_mesh(mesh(to)):
        expected = everything(to)
        restored, _ = Checkpoints(folders["4"]).restore(expected)
        assert_same(restored, expected)
        assert all(
            ours.sharding == theirs.sharding
            for ours, theirs in zip(jax.tree.leaves(restored), jax.tree.leaves(expected), strict=True)
            if isinstance(theirs, jax.Array)
        )


def test_shapes_of_a_mesh_that_is_set(tmp_path):
    """`jax.eval_shape` knows the axes of an Explicit mesh, and not its devices."""
    split = jax.NamedSharding(mesh("4, explicit"), jax.P("x"))
    state = State(jnp.int32(1), {"w": jax.device_put(np.arange(8.0), split)}, (), jnp.zeros(2))
    save(Checkpoints(tmp_path), state)
    with jax.set_mesh(mesh("4, explicit")):
        like = jax.eval_shape(lambda state: state, state)
        restored, _ = Checkpoints(tmp_path).restore(like)
    assert restored.params["w"].sharding == split
    assert_same(restored.params, state.params)
    with pytest.raises(ValueRangeError, match=r"'params.w' is split over a mesh without devices"):
        Checkpoints(tmp_path).restore(like)


def index_of(folder: str) -> dict[str, Any]:
    return json.loads(contents(f"{folder}/step-3/index.json"))


@pytest.mark.parametrize("place", PLACES)
def test_each_element_is_written_once_shard_by_shard(folders, place):
    index, state = index_of(folders[place]), everything(place)
    parts = [part for piece in index["pieces"] for part in piece["tensors"].values()]
    for name, leaf in index["leaves"].items():
        boxes = [part for part in parts if part["leaf"] == name]
        assert sum(np.prod(box["shape"], dtype=int) for box in boxes) == np.prod(leaf["shape"], dtype=int)
    shapes = {
        name: {tuple(p["shape"]) for p in parts if p["leaf"] == f"params.{name}"} for name in state.params
    }
    for name, leaf in state.params.items():
        assert shapes[name] == {leaf.sharding.shard_shape(leaf.shape) if name != "numpy" else (4, 2)}


def opened(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    files, real = set(), _pieces.open_file
    monkeypatch.setattr(
        _pieces, "open_file", lambda source: (files.add(os.path.basename(source)), real(source))[1]
    )
    return files


def large(place: str) -> State:
    rows = np.arange(4096, dtype=np.float32).reshape(64, 64)
    step, key = (jnp.asarray(leaf) for leaf in (np.int32(3), np.zeros(2)))
    return State(step, {"w": on(place, rows, "x", "y"), "b": np.ones(600)}, np.ones(700), key)


def test_only_the_pieces_that_overlap_are_read(tmp_path, monkeypatch):
    """As a process reads that has one of four devices."""
    monkeypatch.setattr(_pieces, "PIECE", 6000)
    folder = str(tmp_path)
    save(Checkpoints(folder), large("2 x 2"))
    pieces = {
        p["file"]: {t["leaf"]: t["start"] for t in p["tensors"].values()} for p in index_of(folder)["pieces"]
    }
    lasts = {file for file, parts in pieces.items() if parts.get("params.w") == [32, 32]}
    assert len(lasts) == 1
    index = _pieces.read_index(f"{folder}/step-3", 3)
    wanted = _pieces.Part("params.w", (40, 40), (8, 3))
    files = opened(monkeypatch)
    array = _pieces.read(f"{folder}/step-3", index, [wanted])[wanted]
    np.testing.assert_array_equal(array, np.asarray(large("one device").params["w"])[wanted.slices])
    assert files == lasts
    across = _pieces.Part("params.w", (30, 1), (4, 63))
    array = _pieces.read(f"{folder}/step-3", index, [wanted, across])[across]
    np.testing.assert_array_equal(array, np.asarray(large("one device").params["w"])[across.slices])
    weights = {file for file, parts in pieces.items() if any(name.startswith("params") for name in parts)}
    files.clear()
    Checkpoints(folder).restore(large("4"), params_only=True)
    assert files == {*weights, "index.json"}
    assert weights < {*pieces}


def test_a_missing_or_flipped_piece_names_its_file(tmp_path, monkeypatch):
    monkeypatch.setattr(_pieces, "PIECE", 6000)
    folder = str(tmp_path)
    save(Checkpoints(folder), large("2 x 2"))
    last = index_of(folder)["pieces"][-1]["file"]
    path = f"{folder}/step-3/{last}"
    flip(path, os.path.getsize(path) - 1)
    with pytest.raises(FileFormatError, match=rf"(?s){last}: tensor .* is damaged"):
        Checkpoints(folder).restore(large("4"))
    cut(path, 100)
    with pytest.raises(FileFormatError, match=rf"{last}: .* cut short"):
        Checkpoints(folder).restore(large("4"))
    os.remove(path)
    with pytest.raises(FileFormatError, match=rf"No such file.*{last}"):
        Checkpoints(folder).restore(large("4"))


BOXES = {  # of an array of 4 x 4: starts and shapes; whether they make it up
    "rows": ([((i, 0), (1, 4)) for i in range(4)], True),
    "a pinwheel": (
        [((0, 0), (1, 3)), ((0, 3), (3, 1)), ((3, 1), (1, 3)), ((1, 0), (3, 1)), ((1, 1), (2, 2))],
        True,
    ),
    "one missing": ([((i, 0), (1, 4)) for i in range(3)], False),
    "one too many": ([((i, 0), (1, 4)) for i in range(4)] + [((0, 0), (1, 1))], False),
    "one twice, one missing": ([((i, 0), (1, 4)) for i in (0, 1, 2, 2)], False),
    "two that cross": ([((0, 0), (2, 4)), ((1, 0), (2, 4))], False),
    "the same cell of two": ([((0, 0), (3, 4)), ((3, 0), (1, 3)), ((2, 3), (1, 1))], False),
}


@pytest.mark.parametrize("kind", BOXES)
def test_an_index_whose_boxes_do_not_make_up_a_leaf_says_so(kind):
    boxes, whole = BOXES[kind]
    leaves = {"params.w": _pieces.Leaf(jax.ShapeDtypeStruct((4, 4), jnp.dtype("float32")), {}, False)}
    tensors = {str(i): _pieces.Part("params.w", *box) for i, box in enumerate(boxes)}
    pieces = [_pieces.Piece("piece-00000.safetensors", "0" * 64, tensors)]
    if whole:
        _pieces._check_cover(leaves, pieces)
        return
    with pytest.raises(ValueError, match=re.escape("the tensors of 'params.w' do not make it up")):
        _pieces._check_cover(leaves, pieces)


# --- several processes, as threads: each has two of the four devices ---------------------------------------


class Together:
    """What the processes of a run have in common."""

    def __init__(self, count: int):
        self.barrier, self.said, self.first = threading.Barrier(count), [Said()] * count, None


class FakePeers(Peers):
    """One of several processes that are threads."""

    def __init__(self, index: int, count: int, together: Together):
        super().__init__()
        self.index, self.count, self.together = index, count, together

    def agree(self, **levels: int) -> Said:
        self.say(**levels)
        self.together.said[self.index] = self._mine
        self.together.barrier.wait(20)
        said = self.together.said
        largest = Said(*map(max, zip(*said, strict=True)))._replace(written=min(one.written for one in said))
        self.together.barrier.wait(20)
        return largest

    def of_first(self, value: Any) -> Any:
        if self.index == 0:
            self.together.first = value
        self.together.barrier.wait(20)
        first = self.together.first
        self.together.barrier.wait(20)
        return first


@pytest.fixture
def run_two(monkeypatch):
    """Run a function of a process's peers in two of them; what each returns or raises."""
    local, real = threading.local(), _pieces.held

    def held(name: str, array: Any, first: bool) -> dict[_pieces.Part, Any]:
        if not isinstance(array, jax.Array) or len(array.sharding.device_set) == 1:
            return real(name, array, first)
        shards = [
            s for s in array.addressable_shards if s.replica_id == 0 and s.device.id // 2 == local.index
        ]
        return {_pieces.Part.at(name, shard.index, array.shape): shard.data for shard in shards}

    monkeypatch.setattr(_pieces, "held", held)

    def run(process: Any) -> list[Any]:
        together, results = Together(2), [None, None]

        def main(index: int) -> None:
            local.index = index
            try:
                results[index] = process(FakePeers(index, 2, together))
            except Exception as error:
                results[index] = error

        threads = [threading.Thread(target=main, args=(index,)) for index in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return results

    return run


def begun(folder: Any, peers: Peers, **options: Any) -> Checkpoints:
    made = Checkpoints(folder, **options)
    made.begin(everything("2 x 2"), peers)
    return made


def at(step: int, state: State) -> State:
    return state._replace(step=np.int32(step))


def test_each_process_writes_what_is_its_own(tmp_path, run_two):
    folder = str(tmp_path / "checkpoints")

    def process(peers: FakePeers) -> None:
        made = begun(folder, peers, keep=1)
        save(made, at(1, everything("2 x 2")), finish=False, seconds=float(peers.index))
        save(made, at(2, everything("2 x 2")))  # waits for the first one; the older is deleted
        save(made, at(2, everything("2 x 2")))  # nothing more to do

    assert run_two(process) == [None, None]
    assert tree(folder) == ["step-2"]
    files = tree(f"{folder}/step-2")
    assert files == ["index.json", "piece-00000-00000.safetensors", "piece-00001-00000.safetensors"]
    index = _pieces.read_index(f"{folder}/step-2", 2)
    first, second = (piece.tensors for piece in index.pieces)
    assert {"step", "params.numpy", "params.whole", "params.both.@0,0"} < {*first}
    assert {*second} & {*first} == set()
    assert "params.both.@4,0" in second
    restored, _ = Checkpoints(folder).restore(everything("4, explicit"))
    assert_same(restored, at(2, everything("4, explicit"))._replace(step=restored.step))


def test_the_index_waits_for_all_and_killed_before_it_the_previous_one_is_there(tmp_path, run_two):
    folder = str(tmp_path / "checkpoints")

    def process(peers: FakePeers) -> None:
        made = begun(folder, peers)
        save(made, at(1, everything("2 x 2")))
        save(made, at(2, everything("2 x 2")), finish=False)
        made._join()
        made.heard(Said(written=2))  # of before: one has not written step 2
        assert made.steps() == [1]
        # and here all are killed

    assert run_two(process) == [None, None]
    assert len(tree(folder)) == 2
    restored, _ = Checkpoints(folder).restore(everything("2 x 2"))  # and no warning
    assert int(restored.step) == 1

    def again(peers: FakePeers) -> None:
        save(begun(folder, peers), at(2, everything("2 x 2")))

    assert run_two(again) == [None, None]
    assert tree(folder) == ["step-1", "step-2"]


def test_what_one_process_cannot_write_is_raised_on_all_and_tried_again(tmp_path, run_two, monkeypatch):
    folder, real, ill = str(tmp_path / "checkpoints"), _pieces.write_file, [True]

    def write_file(target: str, chunks: Any) -> None:
        if ill[0] and "piece-00001-" in target:
            raise OSError(errno.EIO, "input/output error")
        real(target, chunks)

    monkeypatch.setattr(_pieces, "write_file", write_file)

    def process(peers: FakePeers) -> tuple[str | None, str]:
        made = begun(folder, peers)
        save(made, at(1, everything("2 x 2")), finish=False)
        made.wait()
        text = made.error()
        with pytest.raises(OSError, match="last checkpoint, of step 1, is not written") as raised:
            save(made, at(1, everything("2 x 2")))
        peers.agree()
        ill[0] = False
        save(made, at(1, everything("2 x 2")))
        return text, str(raised.value)

    (first, raised), (second, also) = run_two(process)
    assert first == "the checkpoint of step 1 is not written: another process could not write its pieces"
    assert second == "the checkpoint of step 1 is not written: [Errno 5] input/output error"
    assert raised == also
    assert tree(folder) == ["step-1"]
    assert_same(Checkpoints(folder).restore(everything("4"))[0].params, everything("4").params)


def test_a_folder_that_is_not_one_is_said(tmp_path, run_two):
    def process(peers: FakePeers) -> None:
        save(begun(str(tmp_path / f"disk {peers.index}"), peers), at(1, everything("2 x 2")))

    for error in run_two(process):
        assert isinstance(error, OSError)
        assert "process 1 wrote nothing there: all processes must see one folder" in str(error)


def test_damage_that_one_process_finds_lets_all_take_the_one_before(tmp_path, run_two, monkeypatch):
    for step in (1, 2):
        save(Checkpoints(tmp_path), at(step, everything("one device")))
    local, real, said = threading.local(), _pieces.read, []
    monkeypatch.setattr(checkpoints, "gathered", lambda where: nullcontext(local.peers))
    monkeypatch.setattr(checkpoints.warnings, "warn", lambda text, **_: said.append(text))

    def read(folder: str, *args: Any) -> Any:
        if local.peers.index == 1 and folder.endswith("step-2"):
            raise FileFormatError("piece-00001-00000.safetensors: it is damaged")
        return real(folder, *args)

    monkeypatch.setattr(_pieces, "read", read)

    def process(peers: FakePeers) -> int:
        local.peers = peers
        restored, _ = Checkpoints(tmp_path).restore(at(0, everything("2 x 2")))
        return int(restored.step)

    assert run_two(process) == [1, 1]
    assert sorted(text.partition("step 2: ")[2] for text in said) == [
        "piece-00001-00000.safetensors: it is damaged",
        "process 1 cannot read it",
    ]
