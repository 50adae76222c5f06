"""What is known about the machine below: jaxlib versions that compute wrong numbers, the guard, and probes.

XLA:CPU hands part of its work to a library, YNNPACK. In several versions of jaxlib that path computes
garbage, silently, or is slow, and one XLA flag takes the work off it. `guard` sets that flag when funcnet is
imported, for the versions that were measured and no others: XLA aborts the process at a flag that it does not
know. docs/guard.md has the tables. Only `facts` and `probes` import jax.
"""

import os
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

__all__ = [
    "FAULTS",
    "PEAKS",
    "SUSPECTS",
    "Fault",
    "GuardWarning",
    "Peak",
    "Probe",
    "facts",
    "guard",
    "guard_state",
    "jaxlib_version",
    "known_faults",
    "peak_flops",
    "probes",
    "relative_error",
]

_FLAG = "--xla_cpu_experimental_ynn_fusion_type"
_SWITCH = "FUNCNET_XLA_GUARD"


class GuardWarning(UserWarning):
    """The installed jaxlib computes wrong numbers, and funcnet was imported too late to prevent it."""


class Fault(NamedTuple):
    """A fault of released versions of jaxlib.

    `versions` are those that have it, `platform` is "cpu" or "gpu", `effect` "wrong numbers", "crash" or
    "slow", `source` where it was reported or measured, and `flag` the value of
    --xla_cpu_experimental_ynn_fusion_type that cures it; None: change the version.
    """

    versions: tuple[str, ...]
    platform: str
    effect: str
    what: str
    source: str
    flag: str | None = None


_ISSUES = "https://github.com/jax-ml/jax/issues/"
FAULTS = (
    Fault(
        ("0.10.2", "0.11.0", "0.11.1", "0.11.2", "0.12.0", "0.12.0.1"),
        "cpu",
        "wrong numbers",
        "the sum or maximum of a matrix product with a broadcast right operand is garbage beyond 32 x 32",
        "docs/guard.md",
        flag="individual_dot",
    ),
    Fault(
        ("0.10.1",),
        "cpu",
        "slow",
        "convolution gradients take up to 8 times as long as they need on processors without AVX-512",
        "docs/guard.md",
        flag="-individual_convolution",
    ),
    Fault(
        ("0.10.2",),
        "cpu",
        "wrong numbers",
        "matrix-vector products under vmap, squared and summed, are wrong beyond 32k rows (float64: 16k)",
        _ISSUES + "39103",
        flag="individual_dot",
    ),
    Fault(
        ("0.10.2", "0.11.0"),
        "cpu",
        "crash",
        "a sum of products of arrays of rank 7 or 8 with an axis of size 1 crashes or hangs",
        _ISSUES + "39257",
        flag="individual_dot",
    ),
    Fault(
        ("0.11.0", "0.11.1"),
        "gpu",
        "wrong numbers",
        "operations outside jit gave garbage or NaN on an RTX A6000 with CUDA 13",
        _ISSUES + "40633",
    ),
    Fault(
        ("0.10.2", "0.11.0"),
        "gpu",
        "slow",
        "scatter-add with repeated indices, so every embedding gradient, takes 450 to 2000 times as long",
        _ISSUES + "38806",
    ),
    Fault(
        ("0.11.1",),
        "cpu",
        "slow",
        "the gradient of a scan with many scalar carries takes 60 times as long as before",
        _ISSUES + "40150",
    ),
)


def jaxlib_version() -> str:
    """The installed jaxlib's version, read from its file: importing it would take longer than the guard."""
    if "jaxlib" in sys.modules:
        return sys.modules["jaxlib"].__version__
    spec = find_spec("jaxlib")
    if spec is None or spec.origin is None:
        return "not installed"
    text = Path(spec.origin).with_name("version.py").read_text(encoding="utf-8")
    lines = (line for line in text.splitlines() if line.startswith("_release_version"))
    return next((line.split("=")[1].strip(" '\"") for line in lines), "unknown")


def known_faults(version: str | None = None) -> list[Fault]:
    """The faults of one version of jaxlib, by default the installed one."""
    version = jaxlib_version() if version is None else version
    return [fault for fault in FAULTS if version in fault.versions]


def guard() -> None:
    """Append the XLA flag that cures this jaxlib to XLA_FLAGS; `import funcnet` calls this.

    Nothing happens on a version without an entry, if XLA_FLAGS has the flag already, or if
    FUNCNET_XLA_GUARD=off. JAX reads XLA_FLAGS when its backend starts: after `import jax` is early enough.

    Warns:
        GuardWarning: the CPU backend has started, and this version computes wrong numbers.
    """
    state, fault = _state()
    if fault is not None and state == "open":
        os.environ["XLA_FLAGS"] = f"{_xla_flags()} {_FLAG}={fault.flag}".lstrip()
    elif fault is not None and state == "late" and fault.effect == "wrong numbers":
        import warnings

        text = (
            f"jaxlib {jaxlib_version()} computes wrong numbers on CPU: {fault.what}. JAX started before "
            f"funcnet was imported, too late for the XLA flag that cures it. Import funcnet before the first "
            f"JAX operation, or set XLA_FLAGS={_FLAG}={fault.flag}, or compile the function at risk (its "
            f'outermost jit) with jax.jit(f, compiler_options={{"{_FLAG[2:]}": ""}}).'
        )
        warnings.warn(text, GuardWarning, stacklevel=3)  # names the line that imports funcnet


def guard_state() -> str:
    """What the guard does in this process, in one line."""
    state, fault = _state()
    if fault is None:
        return f"not needed: jaxlib {jaxlib_version()} has no entry"
    if state == "set":
        flag = _flag_in_use()
        ours = flag in (f"{_FLAG}=", f"{_FLAG}={fault.flag}")
        return f"{'active' if ours else 'left to you'}: XLA_FLAGS has {flag}"
    why = {"open": "not called", "off": f"{_SWITCH}=off", "late": "JAX started before funcnet was imported"}[
        state
    ]
    return f"NOT ACTIVE ({why}); jaxlib {jaxlib_version()}: {fault.effect}, {fault.what}"


def _state() -> tuple[str, Fault | None]:
    """What the guard can do ("open", "late") or not ("set", "off"), and the fault that it is there for."""
    fault = next((fault for fault in known_faults() if fault.flag is not None), None)
    if _flag_in_use() is not None:
        return "set", fault
    if os.environ.get(_SWITCH) == "off":
        return "off", fault
    return ("late" if fault is not None and _cpu_has_started() else "open"), fault


def _xla_flags() -> str:
    """XLA_FLAGS; where it names a file of flags, which is the other form that XLA takes, the file's text."""
    flags = os.environ.get("XLA_FLAGS", "").strip()
    if flags and not flags.startswith("-") and os.path.isfile(flags):
        flags = " ".join(Path(flags).read_text(encoding="utf-8").split())
    return flags


def _flag_in_use() -> str | None:
    """The guard's flag as it stands in XLA_FLAGS, whoever put it there; of several, XLA takes the last."""
    return next((word for word in reversed(_xla_flags().split()) if word.split("=")[0] == _FLAG), None)


def _cpu_has_started() -> bool:
    """Whether the CPU backend is up, without importing or starting anything."""
    bridge: Any = sys.modules.get("jax._src.xla_bridge")  # no public name tells without starting a backend
    started = getattr(bridge, "backends_are_initialized", None)
    return started is not None and started() and "cpu" in bridge.backends()


def facts() -> dict[str, str]:
    """Versions, devices and flags of this process, for `funcnet doctor`; starts JAX's backend."""
    import platform

    import jax
    import numpy as np

    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "jax": jax.__version__,
        "jaxlib": jaxlib_version(),
        "numpy": np.__version__,
        "backend": jax.default_backend(),
        "devices": ", ".join(f"{device} ({device.device_kind})" for device in jax.devices()),
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", ""),
        "guard": guard_state(),
    }


class Peak(NamedTuple):
    """What a device can do at most: 10¹² floating-point operations a second, in products, dense.

    `float32` is what JAX computes by default for arrays of that type (`jax.lax.Precision.DEFAULT`): TF32 on
    NVIDIA from Ampere on, one pass in bfloat16 on TPU.
    """

    bfloat16: float | None
    float32: float


# By `device_kind`, as the driver spells it. From the data sheets of NVIDIA (H100, H200, A100, L4, T4; half of
# what they state "with sparsity") and of Google (cloud.google.com/tpu/docs/v4, v5e, v5p, v6e). A device of
# these TPUs is a chip; the older ones, where it is a core, are left out.
PEAKS: Mapping[str, Peak] = {
    "NVIDIA H200": Peak(989.4, 494.7),
    "NVIDIA H100 80GB HBM3": Peak(989.4, 494.7),
    "NVIDIA H100 NVL": Peak(835.0, 417.5),
    "NVIDIA H100 PCIe": Peak(756.0, 378.0),
    "NVIDIA A100-SXM4-80GB": Peak(312.0, 156.0),
    "NVIDIA A100-SXM4-40GB": Peak(312.0, 156.0),
    "NVIDIA A100 80GB PCIe": Peak(312.0, 156.0),
    "NVIDIA A100-PCIE-40GB": Peak(312.0, 156.0),
    "NVIDIA L4": Peak(121.0, 60.0),
    "Tesla T4": Peak(None, 8.1),  # its tensor cores take float16, but not bfloat16
    "TPU v4": Peak(275.0, 275.0),
    "TPU v5 lite": Peak(197.0, 197.0),  # v5e
    "TPU v5e": Peak(197.0, 197.0),
    "TPU v5": Peak(459.0, 459.0),  # v5p
    "TPU v5p": Peak(459.0, 459.0),
    "TPU v6 lite": Peak(918.0, 918.0),  # v6e
    "TPU v6e": Peak(918.0, 918.0),
}


def peak_flops(device_kind: str, dtype: Any) -> float | None:
    """FLOP/s that a device can do at most in products of arrays of a dtype; None: not known.

    Args:
        device_kind: `jax.Device.device_kind`.
        dtype: bfloat16 or float32.

    >>> peak_flops("NVIDIA H100 80GB HBM3", "bfloat16"), peak_flops("cpu", "float32")
    (989400000000000.0, None)
    """
    name, known = getattr(dtype, "__name__", str(dtype)), PEAKS.get(device_kind)
    peak = known._asdict().get(name) if known is not None else None
    return None if peak is None else peak * 1e12


class Probe(NamedTuple):
    """A small program and how it came out: `error` is max |got - want| / max |want|, NaN counted as inf."""

    name: str
    ok: bool
    error: float
    limit: float
    seconds: float


# Programs that XLA:CPU has miscompiled: f(xp, e) with xp NumPy or jax.numpy and e [b, n, n], from n = 33 on.
SUSPECTS: Mapping[str, Callable[[Any, Any], Any]] = {
    "(e @ c) * e, sum over rows": lambda xp, e: ((e @ xp.full_like(e, 0.7)) * e).sum(-1),
    "(e @ c) * e, sum over columns": lambda xp, e: ((e @ xp.full_like(e, 0.7)) * e).sum(-2),
    "(e @ c) * e, sum of all": lambda xp, e: ((e @ xp.full_like(e, 0.7)) * e).sum(),
    "(e @ column) * e, sum": lambda xp, e: ((e @ xp.broadcast_to(e[..., :1], e.shape)) * e).sum(-1),
    "e @ ones, sum": lambda xp, e: (e @ xp.ones_like(e)).sum(-1),
    "e @ ones, mean of all": lambda xp, e: (e @ xp.ones_like(e)).mean(),
    "e @ ones, maximum": lambda xp, e: (e @ xp.ones_like(e)).max(-1),
    "e @ ones, no batch, sum": lambda xp, e: (e.reshape(-1, e.shape[-1]) @ xp.ones_like(e[0])).sum(-1),
}


def probes() -> list[Probe]:
    """Run small programs under `jax.jit` and compare them with NumPy in float64, in seconds.

    They are programs that released versions of XLA have miscompiled, and those that training needs: a
    product, a convolution and attention with their gradients, long reductions. They run on JAX's default
    device; `with jax.default_device(...)` chooses another.

    Returns:
        One `Probe` each. A probe that is not ok means that the backend computes wrong numbers.
    """
    import jax
    import jax.numpy as jnp
    import numpy as np

    rng = np.random.default_rng(0)

    def check(name: str, run: Callable, truth: Callable, dtype: str, *shapes: tuple[int, ...]) -> Probe:
        arrays = [rng.standard_normal(shape).astype(dtype) for shape in shapes]
        start = time.perf_counter()
        got = jax.tree.leaves(jax.jit(run)(*map(jnp.asarray, arrays)))
        want = jax.tree.leaves(truth(*(array.astype(np.float64) for array in arrays)))
        error = max(relative_error(a, b) for a, b in zip(got, want, strict=True))
        limit = 1e-4 if dtype == "float32" else 1e-10
        return Probe(f"{name} ({dtype})", error <= limit, error, limit, time.perf_counter() - start)

    results = []
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        for name, program in SUSPECTS.items():
            for dtype in ("float32", "float64"):
                results.append(check(name, partial(program, jnp), partial(program, np), dtype, (40, 33, 33)))
        for name, (run, truth, *shapes) in _healthy_programs().items():
            results.append(check(name, run, truth, "float32", *shapes))
    return results


def relative_error(got: Any, want: Any) -> float:
    """Return max |got - want| / max |want| in float64; inf if any of it is not finite."""
    import numpy as np

    with np.errstate(all="ignore"):  # garbage may overflow
        error = np.max(np.abs(np.asarray(got, np.float64) - want)) / np.max(np.abs(want))
    return float(error) if np.isfinite(error) else float("inf")


def _healthy_programs() -> dict[str, tuple]:
    """Name -> (function of jax arrays, the same of NumPy arrays, shapes of the arguments)."""
    import jax
    import numpy as np
    from jax import lax

    def squares(matrix, rows):  # jax issue 39103
        return jax.vmap(lambda row: ((matrix @ row) ** 2).sum())(rows)

    def reductions(x):
        return x.sum(-1), x.max(-1), (x * x).mean(0), (x - x.mean(-1, keepdims=True)).var()

    def conv(x, w, dy):  # [n, h, w, c], kernel 3 x 3: y, dx, dw
        layout = ("NHWC", "HWIO", "NHWC")
        y, pullback = jax.vjp(
            lambda x, w: lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=layout), x, w
        )
        return y, *pullback(dy)

    def conv_in_numpy(x, w, dy):
        rows, columns = x.shape[1:3]
        padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        y, dw, dpadded = np.zeros_like(dy), np.zeros_like(w), np.zeros_like(padded)
        for i, j in np.ndindex(3, 3):
            shifted = (slice(None), slice(i, i + rows), slice(j, j + columns))
            y += padded[shifted] @ w[i, j]
            dw[i, j] = np.tensordot(padded[shifted], dy, ((0, 1, 2), (0, 1, 2)))
            dpadded[shifted] += dy @ w[i, j].T
        return y, dpadded[:, 1:-1, 1:-1], dw

    def attention(q, k, v, dy):  # [n, t, e]: y, dq, dk, dv
        y, pullback = jax.vjp(lambda q, k, v: jax.nn.softmax(q @ k.mT / q.shape[-1] ** 0.5) @ v, q, k, v)
        return y, *pullback(dy)

    def attention_in_numpy(q, k, v, dy):
        scale = q.shape[-1] ** -0.5
        weights = np.exp(scale * q @ k.mT)
        weights /= weights.sum(-1, keepdims=True)
        dweights = dy @ v.mT
        dlogits = scale * weights * (dweights - (weights * dweights).sum(-1, keepdims=True))
        return weights @ v, dlogits @ k, dlogits.mT @ q, weights.mT @ dy

    return {
        "matrix-vector products under vmap": (
            squares, lambda m, rows: ((rows @ m.T) ** 2).sum(-1), (3, 3), (33000, 3)),
        "product": (lambda a, b: a @ b, lambda a, b: a @ b, (67, 301), (301, 131)),
        "reductions": (reductions, reductions, (3, 40000)),
        "convolution and its gradients": (
            conv, conv_in_numpy, (5, 29, 23, 7), (3, 3, 7, 11), (5, 29, 23, 11)),
        "attention and its gradients": (attention, attention_in_numpy, *[(6, 71, 64)] * 4),
    }  # fmt: skip
