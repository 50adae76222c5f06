"""The checkers of gradients: each tells right from wrong, and one that is missing is a stated gap."""

import jax
import numpy as np
import pytest

from benchmarks import checkers, harness, verifier
from benchmarks.studies.census import Right, Wrong


def draw(rng):
    return rng.standard_normal((3, 5), np.float32), rng.standard_normal((5, 7), np.float32)


def matmul(x, w):
    return x @ w


RIGHT = Right("matmul", "", matmul, lambda x, w, dy: (dy @ w.T, x.T @ dy), draw)
WRONG = Wrong("matmul", "", "x", ("sign",), matmul, lambda x, w, dy: (-dy @ w.T, x.T @ dy), draw)
CHECKERS = [
    pytest.param(entrant, id=name, marks=[pytest.mark.slow] if entrant.package == "torch" else [])
    for name, entrant in verifier.CHECKERS.items()
]


@pytest.mark.parametrize("entrant", CHECKERS)
def test_a_checker_finds_a_wrong_formula_and_lets_a_right_one_pass(entrant, monkeypatch):
    pytest.importorskip(entrant.package)
    monkeypatch.setattr(checkers, "RIGHTS", [RIGHT])
    monkeypatch.setattr(checkers.exam, "WRONG", [WRONG])
    with jax.enable_x64(entrant.process == verifier.FLOAT64):
        passes, named, seconds = checkers.check(entrant.way, True, 0)
        assert (passes, named) == (True, False)
        assert seconds > 0
        passes, named, _ = checkers.check(entrant.way, False, 0)
    assert (passes, named) == (False, entrant.way == "verify")


@pytest.mark.slow
def test_a_checker_that_is_not_installed_is_a_stated_gap(monkeypatch):
    missing = harness.Entrant(verifier.FLOAT32, "chex", "no-such-distribution")
    some = {"funcnet.verify": verifier.CHECKERS["funcnet.verify"], "another": missing}
    monkeypatch.setattr(verifier, "CHECKERS", some)
    (table,) = verifier.run(harness.SMOKE)
    first, second = table.rows
    assert (first["missed"], first["false alarms"]) == ("0 of 3", "0 of 1")
    assert second == {"checker": "another", "missed": "no-such-distribution is not installed"}
