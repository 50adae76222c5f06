"""What was found right is remembered, and forgotten with all that could make it wrong."""

import dataclasses
import datetime
import json
import subprocess
import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

import funcnet as fn
from funcnet import rules
from funcnet.ops.dense import linear
from funcnet.verifier import memory as module
from funcnet.verifier import model
from funcnet.verifier.memory import Memory

FACTS = {"jax": "1", "processor": "a"}
PARAMS = {"w": jnp.ones((3, 2)), "b": jnp.ones(2)}
BATCH = jnp.asarray(np.random.default_rng(0).standard_normal((5, 3)), PARAMS["w"].dtype)


def loss(params, batch):
    return fn.linear.apply(params, batch).sum()


@pytest.fixture
def verify(tmp_path, monkeypatch):
    """Verify a loss with a memory; also how many operations were verified, not remembered."""
    seen, judged = [], model._judged
    monkeypatch.setattr(model, "_judged", lambda *args: seen.append(args[0]) or judged(*args))

    def run(loss=loss, params=PARAMS, batch=BATCH, facts=FACTS, read=True):
        seen.clear()
        memory = Memory(tmp_path / "of mine" / "verified.json", facts, read=read)
        return fn.verify_model(loss, params, batch, memory=memory), len(seen)

    return run


def test_what_was_right_is_not_verified_again(verify):
    first, verified = verify()
    assert (verified, first.ok) == (1, True)
    again, verified = verify()
    assert (verified, again.ok) == (0, True)
    (row,), (known,) = first.rows, again.rows
    assert known.note == f"since {datetime.date.today().isoformat()}"
    same = ("operation", "argument", "shapes", "count", "error", "tolerance", "ok")
    assert [getattr(row, name) for name in same] == [getattr(known, name) for name in same]
    assert f"right: {known.note}" in again.table()
    assert verify(read=False)[1] == 1
    assert verify(batch=-BATCH)[1] == 0, "values are no part of a program"


@pytest.mark.parametrize("right", [True, False])
def test_a_loss_is_run_only_where_random_values_do_not_do(verify, monkeypatch, right):
    ran, judged, said = [], model._judged, iter([right])

    def noted(params, batch):
        ran.append(not isinstance(batch, jax.core.Tracer))
        return loss(params, batch)

    at = lambda *args: dataclasses.replace(judged(*args), ok=next(said, True))
    monkeypatch.setattr(model, "_judged", at)
    for _ in range(2):
        assert verify(noted)[0].ok
    assert ran.count(True) == (0 if right else 1)


def test_another_call_or_machine_is_not_known(verify):
    verify()
    narrow = jax.tree.map(lambda v: jnp.asarray(v, jnp.bfloat16), (PARAMS, BATCH))
    assert verify(batch=BATCH[1:])[1] == 1
    assert verify(params=narrow[0], batch=narrow[1])[1] == 1
    assert verify(params={"w": PARAMS["w"]})[1] == 1
    for name in FACTS:
        assert verify(facts={**FACTS, name: "other"})[1] == 1
    assert verify()[1] == 0, "what was known is known still"


def of_constant(value):
    """An operation whose formula holds an array, of which the text of a program shows the shape alone."""
    held = np.full(7, value, np.float32)
    operation = types.ModuleType("funcnet.ops.scaled")
    scaled = lambda x, power=1: x**power * held.astype(x.dtype)
    operation.reference = operation.apply = scaled
    operation.vjp = lambda x, power=1: (scaled(x), Partial(lambda dy: (scaled(dy),)))
    return operation


def key(operation, shape=(7,), dtype="float32", **options):
    call = rules.Call(operation, (jax.ShapeDtypeStruct(shape, dtype),), options)
    return Memory(Path("none"), FACTS).key(call)


def test_each_part_of_a_key_counts(monkeypatch):
    operation = of_constant(1.5)
    keys = [key(operation), key(operation, (3, 7)), key(operation, dtype="float16"), key(operation, power=2)]
    keys += [key(of_constant(1.5 + 1e-6))]
    for name, changed in (
        ("vjp", lambda x: (x * 1.5, Partial(lambda dy: (2 * dy,)))),
        ("reference", lambda x: x * 1.25),
        ("apply", lambda x: x / 1.25),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(operation, name, changed)
            keys.append(key(operation))
    monkeypatch.setattr(module, "_source", lambda: "of another version")
    keys.append(key(operation))
    assert "" not in keys
    assert len({*keys}) == 9
    monkeypatch.undo()
    assert key(of_constant(1.5)) == keys[0], "made anew it is at other addresses"


def test_what_calls_python_or_asks_for_values_has_no_key(verify):
    operation = of_constant(1.5)
    operation.apply = lambda x: jax.pure_callback(np.sin, x, x)
    assert key(operation) == ""
    operation.apply = lambda x: x if x.sum() > 0 else -x
    assert key(operation) == ""


def test_a_key_is_the_same_in_the_next_process():
    code = """if True:
    import jax, pathlib, funcnet as fn
    from funcnet import rules
    from funcnet.verifier.memory import Memory
    arrays = [jax.ShapeDtypeStruct(s, "float32") for s in ((2, 8, 8, 3), (7, 5, 2, 3), (2, 4))]
    print([Memory(pathlib.Path("none"), {}).key(rules.Call(*call)) for call in (
        (fn.max_pool, (arrays[0],), {"kernel": (2, 2), "stride": 2}),
        (fn.conv, ({"w": jax.ShapeDtypeStruct((3, 3, 3, 5), "float32")}, arrays[0]), {}),
        (fn.gelu, (arrays[2],), {}),
    )])"""
    ran = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True) for _ in range(2)]
    assert ran[0].stdout == ran[1].stdout
    assert ran[0].stdout.count("', '") == 2, ran[0].stderr
    assert "''" not in ran[0].stdout


# ---- what is wrong ----------------------------------------------------------------------------------------


def test_a_formula_made_wrong_after_it_was_right_is_found_and_never_kept(verify, monkeypatch):
    assert verify()[0].ok
    with monkeypatch.context() as patched:
        right = linear._pullback
        wrong = lambda *args, inputs: jax.tree.map(lambda v: 1.5 * v, right(*args, inputs=inputs))
        patched.setattr(linear, "_pullback", wrong)
        for _ in range(2):
            report, verified = verify()
            assert verified
            assert report.wrong
    assert verify()[1] == 0


def test_what_turns_out_wrong_is_forgotten(verify, monkeypatch):
    verify()
    judged = model._judged
    with monkeypatch.context() as patched:  # a machine that errs: the programs are the same
        patched.setattr(model, "_judged", lambda *args: dataclasses.replace(judged(*args), ok=False))
        verify(read=False)
    assert verify()[1] == 1


@pytest.mark.parametrize("factor", [1.0, 1.5])
def test_a_rule_of_the_users_is_verified_each_time(verify, factor):
    given = [1.0]

    @jax.custom_vjp
    def scaled(x):
        return 2 * x

    scaled.defvjp(lambda x: (2 * x, None), lambda _, dy: (2 * given[0] * dy,))
    mine = lambda params, batch: scaled(fn.linear.apply(params, batch)).sum()
    for operations in (1, 0):
        report, verified = verify(mine)
        assert (report.ok, verified) == (True, operations)
    given[0] = factor
    assert verify(mine)[0].ok is (factor == 1.0)


# ---- the file ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["", "{", "[1]", '{"a": 1, "b": ["2026-12-01", "x", 0.0]}', "\x00", "[" * 10**5], ids=range(6)
)
def test_a_file_that_is_none_is_written_anew(verify, tmp_path, text):
    verify()
    file = tmp_path / "of mine" / "verified.json"
    whole = json.loads(file.read_text())
    file.write_text(text)
    assert verify()[1] == 1
    assert json.loads(file.read_text()) == whole
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_two_at_once_keep_what_both_found(verify, tmp_path, monkeypatch):
    file = tmp_path / "both.json"
    one, other = Memory(file, FACTS), Memory(file, FACTS)
    row = fn.verify_model(loss, PARAMS, BATCH).rows[0]
    for memory, name in ((one, "a"), (other, "b")):
        memory.keep(name, row)
    one.save()
    other.save()
    assert [*json.loads(file.read_text())] == ["a", "b"]
    monkeypatch.setattr(module, "LIMIT", 1)
    one.save()
    assert [*json.loads(file.read_text())] == ["b"]


def test_where_nothing_can_be_written_all_is_verified(verify, tmp_path):
    (tmp_path / "of mine").write_text("a file, not a folder")
    for _ in range(2):
        report, verified = verify()
        assert (report.ok, verified) == (True, 1)
