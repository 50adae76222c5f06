"""The guard, each fault with and without it, and the probes. What needs a fresh JAX runs in a subprocess."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from funcnet import backend

FLAG = "--xla_cpu_experimental_ynn_fusion_type"
VERSION = backend.jaxlib_version()
GUARDED = {version: fault for fault in reversed(backend.FAULTS) if fault.flag for version in fault.versions}


def python(code: str, **environment: str) -> str:
    """What `python -c code` prints in a clean environment, where a warning is an error."""
    kept = {
        name: text for name, text in os.environ.items() if not name.startswith(("XLA_", "JAX_", "FUNCNET_"))
    }
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={**kept, "JAX_PLATFORMS": "cpu", **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# The faults themselves: shown without the guard, absent with it. Every guarded version has its test here.

FAILED_PROBES = (
    "from funcnet import backend; print(*(p.name for p in backend.probes() if not p.ok), sep='\\n')"
)

CONVOLUTIONS = """
import funcnet, jax, jax.numpy as jnp
def conv(x, w):
    return jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
def gradients(x, w, dy):
    y, pullback = jax.vjp(conv, x, w)
    return y, pullback(dy)
x, w = jnp.ones((8, 32, 32, 64)), jnp.ones((3, 3, 64, 64))
hlo = jax.jit(gradients).lower(x, w, x).compile().as_text()
print(hlo.count(" convolution("), hlo.count("__ynn_fusion"))
"""


def shows_slow_convolutions() -> None:
    """Forward, dx and dw: three convolutions, each a YNNPACK fusion without the guard, none with it."""
    assert python(CONVOLUTIONS, FUNCNET_XLA_GUARD="off") == "3 3"
    assert python(CONVOLUTIONS) == "3 0"


def shows_wrong_numbers() -> None:
    """Every suspect program is garbage without the guard, none with it."""
    failed = python(FAILED_PROBES, FUNCNET_XLA_GUARD="off").splitlines()
    assert {f"{name} ({dtype})" for name in backend.SUSPECTS for dtype in ("float32", "float64")} <= {*failed}
    assert python(FAILED_PROBES) == ""


@pytest.mark.parametrize("version", GUARDED)
def test_the_guard_cures_the_fault(version):
    if version != VERSION:
        pytest.skip(f"a fault of jaxlib {version}; installed is {VERSION}")
    {"slow": shows_slow_convolutions, "wrong numbers": shows_wrong_numbers}[GUARDED[version].effect]()


def test_versions_without_a_fault_pass_every_probe_without_the_guard():
    if any(fault.effect == "wrong numbers" and fault.platform == "cpu" for fault in backend.known_faults()):
        pytest.skip(f"jaxlib {VERSION} computes wrong numbers without the guard")
    assert python(FAILED_PROBES, FUNCNET_XLA_GUARD="off") == ""


# What importing funcnet does to XLA_FLAGS, for any version: a jaxlib that consists of its version file.


@pytest.fixture
def flags_with(tmp_path: Path):
    def flags(version: str, **environment: str) -> str:
        jaxlib = tmp_path / "jaxlib"
        jaxlib.mkdir()
        (jaxlib / "__init__.py").write_text("raise RuntimeError('the guard imported jaxlib')")
        (jaxlib / "version.py").write_text(f'_version = "9.9"\n_release_version: str = {version!r}\n')
        code = "import os, funcnet; print(os.environ.get('XLA_FLAGS'))"
        return python(code, PYTHONPATH=str(tmp_path), **environment)

    return flags


@pytest.mark.parametrize("version", GUARDED)
def test_known_versions_get_the_flag(flags_with, version):
    assert flags_with(version) == f"{FLAG}={GUARDED[version].flag}"


@pytest.mark.parametrize("version", ["0.9.2", "0.10.10", "0.12.0.2", "0.12.0.dev20261001", "1.0.0"])
def test_unknown_versions_are_left_alone(flags_with, version):
    assert flags_with(version) == "None"


def test_other_flags_are_kept(flags_with):
    flags = flags_with("0.12.0.1", XLA_FLAGS="--xla_force_host_platform_device_count=2")
    assert flags == f"--xla_force_host_platform_device_count=2 {FLAG}=individual_dot"


@pytest.mark.parametrize("flag", [f"{FLAG}=", f"{FLAG}=-dot", f"--xla_dump_to=x {FLAG}=reduce --xla_foo=1"])
def test_the_users_own_flag_is_respected(flags_with, flag):
    assert flags_with("0.12.0.1", XLA_FLAGS=flag) == flag


def test_a_flag_of_similar_name_is_another_flag(flags_with):
    flags = flags_with("0.12.0.1", XLA_FLAGS=f"{FLAG}_x=1")
    assert flags == f"{FLAG}_x=1 {FLAG}=individual_dot"


def test_a_file_of_flags_is_read_since_xla_would_abort_at_a_flag_after_its_name(flags_with, tmp_path):
    file = tmp_path / "flags"
    file.write_text("--xla_dump_to=x\n--xla_foo=1\n")
    assert flags_with("0.12.0.1", XLA_FLAGS=str(file)) == f"--xla_dump_to=x --xla_foo=1 {FLAG}=individual_dot"


def test_a_users_flag_in_a_file_is_respected(flags_with, tmp_path):
    file = tmp_path / "flags"
    file.write_text(f"{FLAG}=\n")
    assert flags_with("0.12.0.1", XLA_FLAGS=str(file)) == str(file)


def test_one_variable_turns_the_guard_off(flags_with):
    assert flags_with("0.12.0.1", FUNCNET_XLA_GUARD="off") == "None"


def test_importing_funcnet_imports_neither_jax_nor_jaxlib():
    assert python("import sys, funcnet; print({'jax', 'jaxlib', 'numpy'} & {*sys.modules})") == "set()"


def test_the_page_of_the_guard_names_every_version_and_flag():
    page = Path(__file__).parents[1].joinpath("docs/guard.md").read_text(encoding="utf-8")
    for version, fault in GUARDED.items():
        assert [line for line in page.splitlines() if version in line and f"`={fault.flag}`" in line], version


# Order of imports.


def test_importing_funcnet_after_jax_is_early_enough():
    if VERSION not in GUARDED:
        pytest.skip(f"jaxlib {VERSION} is not guarded")
    alone = CONVOLUTIONS.replace("import funcnet, jax,", "import jax,")
    assert python(alone) != "3 0"
    assert python("import jax, funcnet" + alone) == "3 0"


# Pretending the version, since the flag's name and the remedy are the same in all guarded versions.
LATE = """
import warnings, jax, jax.numpy as jnp, jaxlib, numpy as np
jnp.zeros(3).block_until_ready()
jaxlib.__version__ = {version!r}
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import funcnet
    import funcnet.backend
import os
print(os.environ.get("XLA_FLAGS"), len(caught), funcnet.backend.guard_state(), sep="\\n")
for warning in caught:
    print(warning.category.__name__, warning.filename, warning.message, sep="\\n")
"""


def test_a_backend_that_is_up_on_a_wrong_version_is_warned_about_once():
    flags, count, state, category, filename, text = python(LATE.format(version="0.12.0.1")).splitlines()
    assert (flags, count, category, filename) == ("None", "1", "GuardWarning", "<string>")
    assert "0.12.0.1" in text
    assert f"XLA_FLAGS={FLAG}=individual_dot" in text
    assert "wrong numbers" in text
    assert state.startswith(
        "NOT ACTIVE (JAX started before funcnet was imported); jaxlib 0.12.0.1: wrong numbers"
    )


@pytest.mark.parametrize("version", ["0.10.1", "1.0.0"])
def test_a_backend_that_is_up_on_a_right_version_is_not_warned_about(version):
    assert python(LATE.format(version=version)).splitlines()[:2] == ["None", "0"]


REMEDY = """
f = lambda e: ((e @ jnp.full_like(e, 0.7)) * e).sum(-1)
e = np.random.default_rng(0).standard_normal((5, 64, 64)).astype(np.float32)
want = ((e @ np.full_like(e, 0.7)) * e).sum(-1)
for call in ("jax.jit(f)", warning.message.args[0].rpartition(" with ")[2].rstrip(".")):
    compiled = eval(call).lower(e).compile()
    print(call, "__ynn_fusion" in compiled.as_text(), np.allclose(compiled(e), want, atol=1e-3), sep="|")
"""


def test_the_remedy_of_the_warning_works_as_printed():
    *_, without, cured = python(LATE.format(version="0.12.0.1") + REMEDY).splitlines()
    right = VERSION not in GUARDED or GUARDED[VERSION].effect != "wrong numbers"
    assert without == f"jax.jit(f)|True|{right}"
    assert cured == f'jax.jit(f, compiler_options={{"{FLAG[2:]}": ""}})|False|True'


# What `funcnet doctor` shows.


def test_known_faults():
    assert [fault.effect for fault in backend.known_faults("0.10.1")] == ["slow"]
    assert {fault.source[-5:] for fault in backend.known_faults("0.10.2")} >= {"39103", "39257"}
    assert {fault.source[-5:] for fault in backend.known_faults("0.11.0")} >= {"39257", "40633"}
    assert {fault.source[-5:] for fault in backend.known_faults("0.11.1")} >= {"40633", "40150"}
    assert backend.known_faults("9.9") == []
    assert backend.known_faults() == backend.known_faults(VERSION)


@pytest.mark.parametrize(
    ("flags", "switch", "version", "state"),
    [
        (f"{FLAG}=individual_dot", "", "0.12.0.1", f"active: XLA_FLAGS has {FLAG}=individual_dot"),
        (f"{FLAG}=", "", "0.12.0.1", f"active: XLA_FLAGS has {FLAG}="),
        (f"{FLAG}= {FLAG}=reduce", "", "0.12.0.1", f"left to you: XLA_FLAGS has {FLAG}=reduce"),
        ("", "off", "0.12.0.1", "NOT ACTIVE (FUNCNET_XLA_GUARD=off); jaxlib 0.12.0.1: wrong numbers, "),
        ("", "", "9.9", "not needed: jaxlib 9.9 has no entry"),
    ],
)
def test_guard_state(monkeypatch, flags, switch, version, state):
    monkeypatch.setenv("XLA_FLAGS", flags)
    monkeypatch.setenv("FUNCNET_XLA_GUARD", switch)
    monkeypatch.setattr(backend, "jaxlib_version", lambda: version)
    assert backend.guard_state().startswith(state)


def test_peaks_by_device_and_dtype():
    for dtype in (jnp.bfloat16, "bfloat16", np.dtype(jnp.bfloat16)):
        assert backend.peak_flops("NVIDIA H100 80GB HBM3", dtype) == 989.4e12
    assert backend.peak_flops("NVIDIA H100 80GB HBM3", jnp.float32) == 494.7e12
    assert backend.peak_flops("Tesla T4", "bfloat16") is None
    assert backend.peak_flops("NVIDIA H100 80GB HBM3", "float64") is None
    assert backend.peak_flops("cpu", "float32") is None
    assert backend.peak_flops("NVIDIA L40S", "float32") is None, "its name begins with that of another"
    for peak in backend.PEAKS.values():
        assert 0 < peak.float32 <= (peak.bfloat16 or peak.float32) < 1000, "10¹² a second, dense"


def test_facts():
    found = backend.facts()
    assert found["jax"] == jax.__version__
    assert found["jaxlib"] == VERSION == sys.modules["jaxlib"].__version__
    assert found["numpy"] == np.__version__
    assert found["backend"] == jax.default_backend()
    assert found["guard"] == backend.guard_state()


def test_every_probe_passes_under_the_guard():
    found = backend.probes()
    assert len(found) == 2 * len(backend.SUSPECTS) + 5
    assert [probe for probe in found if not probe.ok] == []
    assert all(0 <= probe.error <= probe.limit for probe in found)


def test_wrong_numbers_fail_the_probes_that_they_touch(monkeypatch):
    def spoil(module, name):
        right = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *args, **kwargs: right(*args, **kwargs) * 1.001)

    for name in ("full_like", "ones_like", "broadcast_to"):
        spoil(jnp, name)
    spoil(jax.lax, "conv_general_dilated")
    spoil(jax.nn, "softmax")
    right = [probe.name for probe in backend.probes() if probe.ok]
    assert right == [
        f"{name} (float32)" for name in ("matrix-vector products under vmap", "product", "reductions")
    ]


@pytest.mark.parametrize(
    ("got", "error"),
    [
        ([1.0, 2.0], 0.0),
        ([1.0, 2.2], 0.1),
        ([1.0, np.nan], np.inf),
        ([1.0, -np.inf], np.inf),
        ([1.8e308, 2], np.inf),
    ],
)
def test_relative_error(got, error):
    assert backend.relative_error(np.array(got), np.array([1.0, 2.0])) == pytest.approx(error)
