"""The devices of a run, from the command line; and its processes."""

import jax
import numpy as np
import pytest

import funcnet as fn
from funcnet import shard, verifier
from funcnet.cli import UsageError, main, train
from funcnet.cli._mesh import Devices, joined, mesh_of, rules_of
from funcnet.nets import convnet
from funcnet.tasks import digits
from tests import processes
from tests.cli import several


def test_a_mesh_by_its_axes():
    assert mesh_of(None) is None
    assert dict(mesh_of("data=4").shape) == {"data": 4}
    assert dict(mesh_of("data=2,tensor=2").shape) == {"data": 2, "tensor": 2}
    for text in ("", "4", "data", "data=0", "tensor=4", "data=2,data=2", "data=2,rows=2", "data=2;tensor=2"):
        with pytest.raises(UsageError, match="data=4,tensor=2"):
            mesh_of(text)
    with pytest.raises(UsageError, match="takes 8 devices, and there are 4; JAX_NUM_CPU_DEVICES"):
        mesh_of("data=8")


def test_rules_by_their_names():
    mesh = mesh_of("data=2,tensor=2")
    assert rules_of(None, mesh) == rules_of("dp", mesh) == {}
    assert rules_of("fsdp", mesh) == shard.FSDP
    assert rules_of("fsdp,tp", mesh) == {**shard.FSDP, **shard.TP}
    with pytest.raises(UsageError, match="dp, fsdp, tp"):
        rules_of("zero", mesh)
    with pytest.raises(UsageError, match="tp splits over an axis tensor"):
        rules_of("tp", mesh_of("data=4"))
    with pytest.raises(UsageError, match="needs a mesh"):
        rules_of("fsdp", None)


def test_the_flags_lay_parameters_and_batches(monkeypatch, tmp_path, capsys):
    """What the step is given, once training begins."""
    given = {}
    config = convnet.Config((8, 8, 1), channels=(16,), hidden=64)
    monkeypatch.setattr(digits, "config", lambda options: config)
    monkeypatch.setattr(train, "run_and_save", lambda run, state, *_: given.update(run=run, state=state) or 0)
    monkeypatch.setattr(train, "rates", lambda *_: {})
    monkeypatch.setattr(verifier, "verify_model", lambda *_, **__: verifier.Report(()))
    options = ["digits", "--mesh", "data=2,tensor=2", "--shard", "fsdp", "--out", str(tmp_path / "run")]
    assert train.run(options) == 0
    leaves = jax.tree.leaves(given["state"].params)
    assert all(len(leaf.sharding.device_set) == 4 for leaf in leaves)
    assert given["run"].mesh.shape["tensor"] == 2
    assert "parameters on the mesh" in capsys.readouterr().out


@pytest.fixture
def asked(monkeypatch):
    """What JAX is asked for, which is in no cluster here; and no variables."""
    for name in ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"):
        monkeypatch.delenv(name, raising=False)
    found = []

    def initialize(coordinator, count, index, *, cluster_detection_method):
        found.append((coordinator, count, index, cluster_detection_method))
        if None in (coordinator, count, index):
            raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    return found


def test_options_come_before_variables_and_both_before_what_jax_finds(asked, monkeypatch):
    with joined(Devices()):
        pass
    assert asked == []
    with joined(Devices(distributed=True, coordinator="host:1", processes=4, process=3)):
        pass
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "train-0.train:1234")
    monkeypatch.setenv("JAX_NUM_PROCESSES", "8")
    monkeypatch.setenv("JAX_PROCESS_ID", "5")
    with joined(Devices(distributed=True, process=6)):
        pass
    assert asked == [("host:1", 4, 3, "deactivate"), ("train-0.train:1234", 8, 6, "deactivate")]


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"processes": 2}, "--processes: of several processes: --distributed"),
        (
            {"distributed": True, "processes": 2},
            r"JAX finds no Slurm, .*: say --coordinator \(JAX_COORDINATOR_ADDRESS\), --process \(JAX_PR",
        ),
        ({"distributed": True, "coordinator": "host"}, "--coordinator host: HOST:PORT"),
        ({"distributed": True, "processes": 2, "process": 2}, "--process 2 of --processes 2: 0 to 1"),
    ],
)
def test_what_is_not_said_is_told(asked, options, problem):
    with pytest.raises(UsageError, match=problem), joined(Devices(**options)):
        pass


def test_a_variable_that_is_no_number(asked, monkeypatch):
    monkeypatch.setenv("JAX_NUM_PROCESSES", "two")
    with (
        pytest.raises(UsageError, match="JAX_NUM_PROCESSES=two is no number"),
        joined(Devices(distributed=True)),
    ):
        pass


def test_only_the_first_process_prints(asked, monkeypatch, capsys):
    devices = Devices(distributed=True, coordinator="host:1", processes=2, process=1)
    for index in (0, 1):
        monkeypatch.setattr(jax, "process_index", lambda index=index: index)
        with joined(devices):
            print(f"from {index}")
    assert capsys.readouterr().out == "from 0\n"


@pytest.mark.slow
def test_two_processes_train_as_one_does(tmp_path, monkeypatch):
    """And another seed for one of them ends both, before a run folder is begun."""

    def launched(out, **environment):
        command = "-m", "tests.cli.several", "--out", str(tmp_path / out)
        return processes.launch(tmp_path, 2, *command, seconds=400.0, **environment)

    for ended in launched("differ", DIFFERENT="1"):
        assert ended.code == 2
        assert "process 1 has another command than process 0; expected options.seed: 0" in ended.text
    assert not (tmp_path / "differ").exists()

    first, second = launched("both")
    assert first.code == second.code == 0, first.text + second.text
    assert "processes 2, with 4 devices" in first.text
    assert "test accuracy" in first.text
    assert not any(word in second.text for word in ("digits", "step ", "accuracy"))
    monkeypatch.setattr(digits, "config", lambda options: several.CONFIG)
    monkeypatch.setattr(verifier, "verify_model", lambda *_, **__: verifier.Report(()))
    with jax.enable_x64(False):
        assert main([*several.OPTIONS, "--out", str(tmp_path / "alone")]) == 0
    histories = [fn.train.History.read(tmp_path / name / "metrics.jsonl") for name in ("both", "alone")]
    for name in ("loss", "eval_loss"):
        ours, theirs = (history.column(name)[1] for history in histories)
        assert len(ours) == len(theirs) > 0
        np.testing.assert_allclose(ours, theirs, rtol=1e-4)
    params = [fn.load(tmp_path / name / "params.safetensors") for name in ("both", "alone")]
    for one, other in zip(*map(jax.tree.leaves, params), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-3)
    assert {path.name for path in (tmp_path / "both").iterdir()} == {
        path.name for path in (tmp_path / "alone").iterdir()
    }
