"""Single mistakes put into `funcnet/ops`, each of which the fast tests must find: `make mutants`; minutes.

    python -m tests.mutants [OPERATION...]

A mistake is a piece of text that stands once in a file, and what is put there. For each, a copy of the
package is broken, and what the fast tests have on that operation is run: its laws and its own file. A mistake
that they let pass fails the run; so does one whose text is gone, since it is no mistake any more.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import funcnet as fn

ROOT = Path(__file__).parents[1]
MUTANTS = [  # operation, file beside it ("" is its own), what stands there, what is put there
    ("linear", "", "dx = jnp.matmul(dy, wx.T,", "dx = jnp.matmul(dy, wx,"),
    ("matmul", "", "if x.shape[axis] != 1]", "]"),  # no sum over an axis that was broadcast
    ("moe", "", 'dfacts["balance"] * (experts / n)', 'dfacts["balance"] * (1 / n)'),
    ("moe", "", "scores - gates * scores.sum", "scores - scores.sum"),
    ("moe", "_experts.py", "dgate = (q * h).sum(-1) + ", "dgate = (q * h).sum(-1) + 0 * "),
    ("moe", "_experts.py", "ours, -2) - ours + before", "ours, -2) + before"),
    ("embedding", "", "ids, v).astype(jnp.int32)", "ids, 0).astype(jnp.int32)"),
    ("conv", "", "_bias.gradients(params, dw, dy)", "_bias.gradients(params, dw, -dy)"),
    ("conv", "_toeplitz.py", "add(first[::-1])", "add(first)"),
    ("conv_transpose", "", "kernel_gradient(dy, x,", "kernel_gradient(dy, -x,"),
    ("max_pool", "", "equal = (block == y)", "equal = (block <= y)"),
    ("avg_pool", "", "axis.kernel - 1 - axis.low", "axis.kernel - axis.low"),
    ("lp_pool", "", "ratio ** (p - 1)", "ratio**p"),
    ("patches", "_taps.py", "parts.append(lax.pad", "parts.append(2 * lax.pad"),
    ("fold", "_taps.py", "to.start - low,", "to.start,"),
    ("resize", "_axes.py", "np.cumsum(counts) - counts, counts", "np.cumsum(counts) - counts[0], counts"),
    ("pad", "_axes.py", "1.0 if weight is None else weight[seen][order]", "2.0 if weight is None else 1"),
    (
        "adaptive_avg_pool",
        "_windows.py",
        "end = -(-(np.arange(out) + 1) * size // out)",
        "end = (np.arange(out) + 1) * size // out",
    ),
    ("adaptive_max_pool", "", "sees & (took ==", "(took =="),
    ("pixel_shuffle", "_pixels.py", "block = (*inner, y.ndim - 1)", "block = (*inner[::-1], y.ndim - 1)"),
    ("grid_sample", "", "*w[:a], *w[a + 1 :]", "*w[: a + 1], *w[a + 1 :]"),
    ("layer_norm", "", "(g * xhat).mean(-1, keepdims=True)", "g.mean(-1, keepdims=True)"),
    ("rms_norm", "", "dx = rrms * (g - xhat", "dx = rrms * (g + xhat"),
    ("group_norm", "", "_WITHIN = (-3, -1)", "_WITHIN = (-1,)"),
    ("batch_norm", "", "(n / jnp.maximum(n - 1, 1))", "(n / n)"),
    ("softmax", "", "narrow(p * (g - (p * g)", "narrow(p * (g - (g)"),
    ("gelu", "activations.py", "* (p + x * density)", "* (p + density)"),
    ("swiglu", "activations.py", "dy * s * (1 + x * rest)", "dy * s * (1 + x * s)"),
    ("activations", "activations.py", "top = jnp.where(x < 0, e * (e + 2), 1 + 2 * e)", "top = e * (e + 2)"),
    ("activations", "activations.py", "jnp.where((x <= 0) | (x >= 6), 0, dy)", "jnp.where(x <= 0, 0, dy)"),
    ("others", "../dense/bilinear.py", '"...jk,...k->...j"', '"...kj,...k->...j"'),
    ("others", "../elementwise/prelu.py", "jnp.where(h > 0, dy, w * dleft)", "jnp.where(h > 0, dy, dleft)"),
    ("others", "../norm/l2_norm.py", "(g - y * along) * inverse", "(g - along) * inverse"),
    ("regularizers", "regularizers.py", "(drop(dy, rate, key, traced | static),)", "(dy,)"),
    ("dropout", "", "(1 / (1 - rate or 1))", "(1 / rate)"),
    ("cross_entropy", "", "p) - label_smoothing /", "p) + label_smoothing /"),
    ("cosine", "comparisons.py", "(v - u - y * v) / b", "(v - u) / b"),
    ("contrastive", "", "g[:, None] / 2 * _slope(k * others", "g[None] / 2 * _slope(k * others"),
    ("nll", "", "counted[..., None] & (place", "(place"),
    ("ctc", "", "skips, to_blank[:, :-1], blanks", "skips, blanks[:, :-1], blanks"),
    ("ctc", "", "_before(jnp.where(skips, comes, 0))", "_before(jnp.where(skips, 0, comes))"),
    ("mse", "", "narrow(-de, target)", "narrow(de, target)"),
    ("attention", "_blocks.py", "_where(seen, dp - _at(d, i), 0)", "_where(seen, dp, 0)"),
    ("rope", "", "b * cos + a * sin", "b * cos - a * sin"),
    ("stft", "_frames.py", "n_fft, n_fft / 2)", "n_fft, n_fft)"),
    ("istft", "", "- 2 * align(w, v.ndim) * under", "- align(w, v.ndim) * under"),
    ("lfilter", "", "-met(y, a)", "met(y, a)"),
    ("pre_emphasis", "", "(-1, 1)),)", "(1, -1)),)"),
    ("deltas", "", ".at[..., -1, :].add(last)", ""),
    ("mfcc", "", "d[0] /= np.sqrt(2)", "d[0] /= 2"),
    ("magnitude", "", "unit / length[..., None], 0)", "unit, 0)"),
    ("power", "", "narrow(2 * dy", "narrow(dy"),
    ("mel", "", "seen(rising, piece + 1)", "seen(rising, piece)"),
    ("log_mel", "", "+ cut * most /", "+ 0 * most /"),
    ("lstm", "", 'dc * (s["c"] * f * (1 - f))', "dc * (f * (1 - f))"),
    ("lstm", "_scan.py", 'of_h = _real(dh, real) if "r"', 'of_h = dh if "r"'),
    ("gru", "", "(h, da[..., 2 * m :] * gates[..., :m])", "(h, da[..., 2 * m :])"),
    ("rnn", "_scan.py", "_or(real, v, ds[name]) for", "v for"),
    ("linear_recurrence", "", "(factors * dh)[:1]", "dh[:1]"),
    (
        "linear_attention",
        "",
        "return ds, _Steps(dq, dk, dv, decayed)",
        "return 0 * ds, _Steps(dq, dk, dv, decayed)",
    ),
    ("alibi", "", "if axis != dy.ndim - 3)", "if axis > dy.ndim - 3)"),
]


FOLDERS = {"activations": "elementwise", "others": "norm", "regularizers": "random"}


def found(operation: str, file: str, old: str, new: str) -> bool:
    """Whether the fast tests of the operation fail once `old` is `new`."""
    # Of a family that is asked at once: by the name of its file, or of its case.
    family = fn._OPERATIONS.get(operation) or FOLDERS[operation]
    with tempfile.TemporaryDirectory() as folder:
        for part in ("funcnet", "tests"):
            shutil.copytree(ROOT / part, Path(folder) / part, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", folder)
        path = Path(folder) / "funcnet/ops" / family / (file or f"{operation}.py")
        text = path.read_text("utf-8")
        if text.count(old) != 1:
            raise SystemExit(f"{path.name} holds {old!r} {text.count(old)} times: write another mistake.")
        path.write_text(text.replace(old, new), "utf-8")
        names = f"[{operation}- or -{operation}- or -{operation}] or test_{operation}.py"
        own = Path(f"tests/ops/{family}/test_{operation}.py")
        tests = ["tests/test_laws.py", *[str(own)] * (Path(folder) / own).exists(), "-k", names]
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-n", "0", "-p", "no:cacheprovider", *tests]
        env = {**os.environ, "PYTHONPATH": folder, "JAX_PLATFORMS": "cpu"}
        run = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    if run.returncode not in (0, 1):
        raise SystemExit(run.stdout + run.stderr)
    return run.returncode == 1


def main(operations: list[str]) -> int:
    passed = 0
    for mutant in MUTANTS:
        if not operations or mutant[0] in operations:
            caught = found(*mutant)
            passed += not caught
            verdict = "found" if caught else "PASSED"
            print(f"{verdict:6}  {mutant[0]}: {mutant[2]!r} -> {mutant[3]!r}", flush=True)
    print(f"{passed} passed unseen")
    return int(passed > 0)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
