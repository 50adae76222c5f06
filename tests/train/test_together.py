"""Several processes that train together: the same numbers, the same end, and nobody waits for ever."""

import json
import shutil
import signal

import jax
import numpy as np
import pytest

import funcnet as fn
from funcnet.nets import mlp
from tests import processes
from tests.train import together

AT_ONCE = ("rows", "trap", "run", "ahead", "short", "different", "bad_record", "kept")


def act(folder, count, *acts, devices=2, seconds=300.0, **environment):
    """What came of each act, process by process."""
    ended = processes.launch(
        folder, count, "-m", "tests.train.together", *acts, devices=devices, seconds=seconds,
        FOLDER=str(folder), **environment,
    )  # fmt: skip
    for one in ended:
        assert one.code == 0, one.text
    return [_found(one.text) for one in ended]


def _found(text):
    return dict(json.loads(line) for line in text.splitlines() if line.startswith("["[:1] + '"'))


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Two processes of two devices each."""
    folder = tmp_path_factory.mktemp("together")
    return folder, act(folder, 2, *AT_ONCE)


def close(a, b):
    """Whether two results of `trained` are the same up to rounding."""
    assert (a["step"], a["ended"], len(a["records"])) == (b["step"], b["ended"], len(b["records"]))
    for one, other in zip(a["records"], b["records"], strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_allclose(one[name], other[name], rtol=0, atol=1e-6, err_msg=name)
    return True


def test_the_losses_are_those_of_one_process(both):
    folder, results = both
    with jax.set_mesh(jax.make_mesh((2, 2), ("data", "tensor"))):
        alone = together.trained()
    for result in results:
        assert close(result["run"], alone)
    wrong = json.loads(json.dumps(alone))
    wrong["records"][3]["loss"] += 1e-5
    with pytest.raises(AssertionError, match="loss"):
        close(results[0]["run"], wrong)
    assert len(fn.train.History.read(folder / "log-0" / "metrics.jsonl")) == 5
    assert not (folder / "log-1").exists(), "process 0 writes down what all have read"


def test_the_batches_are_the_same_for_any_number_of_processes(both):
    expected = [b.tolist() for b in fn.train.batches(np.arange(24), 8, seed=3, epochs=1)]
    for index, result in enumerate(both[1]):
        found = result["rows"]
        assert found["data"]["batches"] == found["tensor"]["batches"] == expected
        assert found["data"]["read"] == [[8 * n + 4 * index, 8 * n + 4 * index + 4] for n in range(3)]
        assert found["tensor"]["read"] == [[8 * n, 8 * n + 8] for n in range(3)], "it holds all rows"
        assert result["trap"] == {"theirs": [4], "ours": [8]}


def test_threads_know_the_mesh_and_give_back_what_they_read(both):
    for result in both[1]:
        losses = [record["loss"] for record in result["run"]["records"]][:3]
        np.testing.assert_allclose(result["ahead"]["losses"], losses, atol=1e-6)
        np.testing.assert_allclose(result["ahead"]["mapped"], losses, atol=1e-6)
        assert result["ahead"]["place"] == [0, 1]


def test_the_shortest_data_end_all(both):
    for result in both[1]:
        assert result["short"] == {"step": 3, "ended": "data"}


def test_processes_that_differ_are_refused(both):
    options, program = both[1][0]["different"]
    assert both[1][1]["different"] == [options, program], "on all of them"
    assert options == (
        "train.fit: process 1 has another option than process 0.\n"
        "  expected  steps: 3\n"
        "  got       steps: 4\n"
        "  hint      every process runs the same program with the same options"
    )
    assert program.startswith("train.fit: process 1 has another step than process 0.\n  expected  program: ")


def test_an_error_of_one_ends_all_after_the_same_step(both):
    first, second = (result["bad_record"] for result in both[1])
    assert (second["error"], second["step"]) == ("RecordError", 3)
    assert (first["error"], first["step"], first["processes"]) == ("PeersError", 3, [1])
    assert "process 1 has ended the run: RecordError: train.batches: batch 0 of epoch 1" in first["text"]
    assert "the disk is gone" in first["text"]


def test_checkpoints_are_those_of_all_processes(both):
    folder, results = both
    for result in results:
        assert result["kept"]["same"]
        assert result["kept"]["losses"] == [one["loss"] for one in results[0]["run"]["records"][3:]]
        assert result["kept"]["steps"] == [4, 5]
    files = sorted(file.name for file in (folder / "checkpoints" / "step-5").iterdir())
    assert files == ["index.json", "piece-00000-00000.safetensors", "piece-00001-00000.safetensors"]


def test_what_several_processes_wrote_comes_back_on_one_device(both, tmp_path):
    params = mlp.init(jax.random.key(1), together.CONFIG)
    like = fn.train.init(params, together.OPTIMIZER, key=jax.random.key(1))
    state, _ = fn.train.Checkpoints(both[0] / "checkpoints").restore(like, step=5)
    assert all(leaf.devices() == {jax.devices()[0]} for leaf in jax.tree.leaves(state))
    assert together.leaves(state) == both[1][0]["kept"]["leaves"] == both[1][1]["kept"]["leaves"]


@pytest.mark.slow
def test_four_processes_read_what_two_wrote(both, tmp_path):
    shutil.copytree(both[0] / "checkpoints", tmp_path / "checkpoints")
    for result in act(tmp_path, 4, "restored", devices=1):
        assert result["restored"] == both[1][0]["kept"]["leaves"]


@pytest.mark.slow
def test_killed_between_pieces_and_index_the_previous_one_is_there(both, tmp_path):
    shutil.copytree(both[0] / "checkpoints", tmp_path / "checkpoints")
    ended = processes.launch(tmp_path, 2, "-m", "tests.train.together", "cut", FOLDER=str(tmp_path))
    assert ended[1].code == -signal.SIGKILL
    assert ended[0].code != 0
    (left,) = (tmp_path / "checkpoints").glob(".step-6.tmp-*")
    assert len([*left.glob("piece-0000[01]-00000.safetensors")]) == 2
    for result in act(tmp_path, 2, "restored"):
        assert result["restored"] == both[1][0]["kept"]["leaves"]


@pytest.mark.slow
def test_four_processes_of_one_device(tmp_path, both):
    results = act(tmp_path, 4, "run", "rows", devices=1)
    for result in results:
        assert close(result["run"], both[1][0]["run"])
        assert result["rows"]["data"]["batches"] == both[1][0]["rows"]["data"]["batches"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_to_one_ends_all_after_the_same_step(tmp_path, name):
    results = act(tmp_path, 2, "by_signal", "by_clock", "nan", SIGNAL=name)
    assert results[0] == results[1]
    assert results[0]["by_signal"] == {"step": 3, "ended": name, "evaluated": False}
    assert results[0]["by_clock"]["ended"] == "minutes"
    nan = results[0]["nan"]
    assert nan["skipped"] == [1]
    assert nan["error"] == "NonFiniteError"
    assert "the loss of step 2 is nan" in nan["text"]


@pytest.mark.slow
def test_a_label_that_one_process_sees_ends_all(tmp_path):
    for one in processes.launch(tmp_path, 2, "-m", "tests.train.together", "label", FOLDER=str(tmp_path)):
        assert "outside [0, 4)" in one.text


@pytest.mark.slow
@pytest.mark.parametrize("how", ["SIGKILL", "SIGSTOP", "asleep"])
def test_a_peer_that_is_lost_ends_the_others(tmp_path, how):
    ended = processes.launch(
        tmp_path, 3, "-m", "tests.train.together", "lost", devices=1, seconds=200,
        FOLDER=str(tmp_path), LOST=how,
    )  # fmt: skip
    for one in ended[:2]:
        assert one.code != -9, f"it waited for ever:\n{one.text}"
        assert "PeersError" in one.text
        assert "process 2" in one.text
