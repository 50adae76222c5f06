"""Benchmarks beside others: that the model is the same one, and that they refuse where they cannot run."""

import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from benchmarks import _gpt, gpt2_gpu

ROOT = Path(__file__).parents[1]
TINY = _gpt.Size(layers=2, heads=2, d=8, t=6, batch=3, vocabulary=11)


def test_the_flops_of_gpt2_are_those_of_the_literature():
    size = gpt2_gpu.GPT2
    parameters = sum(leaf.size for leaf in jax.tree.leaves(_gpt.weights(TINY)))
    causal, full = gpt2_gpu.flops_per_token(TINY)
    assert full == 6 * parameters + 12 * 2 * 8 * 6
    assert full - causal == 6 * 2 * 8 * 6
    causal, full = gpt2_gpu.flops_per_token(size)
    assert causal == pytest.approx(803e6, rel=1e-3), "llm.c's figure"
    assert full == pytest.approx(860e6, rel=1e-3)


@pytest.mark.slow
def test_both_frameworks_train_the_same_model():
    pytest.importorskip("torch")
    ours, theirs = gpt2_gpu.by_funcnet(TINY, "float32"), gpt2_gpu.by_torch(TINY, "float32", "cpu")
    np.testing.assert_allclose(gpt2_gpu._losses(ours), gpt2_gpu._losses(theirs), rtol=1e-5)
    for part in gpt2_gpu.PARTS:
        values = [jax.tree.leaves(cases[part]()())[0] for cases in (ours, theirs)]
        assert float(values[0]) == pytest.approx(float(values[1]), rel=1e-5), part
    assert {*ours} == {*gpt2_gpu.PARTS, *gpt2_gpu.OURS}
    assert {*theirs} == {*gpt2_gpu.PARTS}
    in_full = ours["step, logits in full"]()
    np.testing.assert_allclose([float(in_full()) for _ in range(4)], gpt2_gpu._losses(ours), rtol=1e-5)
    for part in gpt2_gpu.OURS[1:]:
        value, grads = ours[part]()()
        assert np.isfinite(value)
        assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(grads))


def test_without_a_gpu_the_benchmark_of_gpt2_says_so():
    if jax.default_backend() != "cpu":
        pytest.skip("there is one")
    command = [sys.executable, "-m", "benchmarks", "gpt2_gpu"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == "gpt2_gpu: this needs a GPU, but JAX has only cpu here\n"
