"""The benchmark of a GPU: both frameworks train the same model; without one, it says so."""

import dataclasses
import warnings

import jax
import numpy as np
import pytest

from benchmarks import gpu, harness
from benchmarks.models import TINY, Resnet

GPT = TINY["tiny GPT"]
RESNET = Resnet((4, 6), (1, 2), (16, 18, 3), batch=5, classes=7, bottleneck=True, stem=7)


@pytest.fixture
def torch():
    """Without oneDNN: PyTorch 2.13's corrupts the heap in the backward of a small convolution, with AVX-512
    where the threads cannot share the batch evenly, with AVX2 always (RESNET without bottlenecks)."""
    torch = pytest.importorskip("torch")
    with warnings.catch_warnings():  # of Intel's GPUs
        warnings.simplefilter("ignore", UserWarning)
        before = torch.backends.mkldnn.set_flags(False)
    yield torch
    torch.backends.mkldnn.set_flags(before[0])


def count(model):
    return sum(leaf.size for leaf in jax.tree.leaves(model.weights()))


def losses(cases, part="step"):
    """Of the first four steps; the last is the loss after three."""
    call = cases[part]()
    return [float(call()) for _ in range(4)]


def test_the_flops_of_gpt2_are_those_of_the_literature():
    causal, full = gpu.flops_per_token(GPT)
    assert full == 6 * count(GPT) + 12 * 2 * 8 * 6
    assert full - causal == 6 * 2 * 8 * 6
    causal, full = gpu.flops_per_token(gpu.GPT2)
    assert causal == pytest.approx(803e6, rel=1e-3), "llm.c's figure"
    assert full == pytest.approx(860e6, rel=1e-3)


def test_the_flops_of_resnet_50_are_those_of_the_literature():
    assert sum(gpu.multiply_adds(gpu.RESNET50)) == pytest.approx(4.089e9, rel=1e-4), "torchvision's figure"
    basic = dataclasses.replace(gpu.RESNET50, blocks=(2, 2, 2, 2), bottleneck=False)
    assert sum(gpu.multiply_adds(basic)) == pytest.approx(1.814e9, rel=1e-3), "of its ResNet-18"
    stem = 112**2 * 7**2 * 3 * 64
    assert gpu.flops_per_image(gpu.RESNET50) == 6 * sum(gpu.multiply_adds(gpu.RESNET50)) - 2 * stem


def test_resnet_50_has_its_parameters():
    assert count(gpu.RESNET50) == 25_557_032


@pytest.mark.slow
@pytest.mark.parametrize("model", [GPT, RESNET, dataclasses.replace(RESNET, bottleneck=False, stem=3)])
@pytest.mark.usefixtures("torch")
def test_both_frameworks_train_the_same_model(model):
    ours, theirs = gpu.by_funcnet(model, "float32"), gpu.by_torch(model, "float32", "cpu")
    assert {*theirs} == {*gpu.PARTS}
    np.testing.assert_allclose(losses(ours), losses(theirs), rtol=1e-5)
    for part in gpu.PARTS:
        values = [jax.tree.leaves(cases[part]()())[0] for cases in (ours, theirs)]
        assert float(values[0]) == pytest.approx(float(values[1]), rel=1e-5), part


@pytest.mark.slow
@pytest.mark.parametrize("model", [GPT, dataclasses.replace(RESNET, batch=32, rate=1e-3)])
@pytest.mark.usefixtures("torch")
def test_both_frameworks_mix_precisions_alike(model):
    exact, *mixed = (
        losses(cases)
        for cases in (
            gpu.by_funcnet(model, "float32"),
            gpu.by_funcnet(model, "bfloat16"),
            gpu.by_torch(model, "bfloat16", "cpu"),
        )
    )
    for values in mixed:
        assert values != exact
        np.testing.assert_allclose(values, exact, rtol=gpu.TOLERANCE)


@pytest.mark.slow
def test_the_parts_of_gpt2_are_parts_of_its_step():
    ours = gpu.by_funcnet(GPT, "float32")
    assert {*ours} == {*gpu.PARTS, *gpu.OURS}
    np.testing.assert_allclose(losses(ours, "step, logits in full"), losses(ours), rtol=1e-5)
    for part in gpu.OURS[1:]:
        value, grads = ours[part]()()
        assert np.isfinite(value)
        assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(grads))


def test_without_a_gpu_the_table_says_so():
    if jax.default_backend() != "cpu":
        pytest.skip("there is one")
    (table,) = gpu.run(harness.SMOKE)
    gap = "not measured: JAX has only cpu here"
    assert table.rows == [{"step of": name, "funcnet": gap} for name in gpu.MODELS]


def test_rates_and_shares_follow_from_the_times():
    measure = harness.Measure(0.5, 0.4, 0.6)
    steps = {f"{name}: step": {"funcnet": measure, "PyTorch": "not installed"} for name in gpu.MODELS}
    gpt, resnet = gpu._rates(steps, 1e15)
    assert gpt["rate"] == "65,536 tokens/s"
    assert gpt["share of peak"] == "5.3%"
    assert gpt["the masked half of attention counted"] == "5.6%"
    assert resnet == {"": "ResNet-50, funcnet", "rate": "512 images/s", "share of peak": "1.2%"}
    assert gpu._rates(steps, None)[0]["share of peak"] == "peak not known"
