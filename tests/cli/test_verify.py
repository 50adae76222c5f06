"""`funcnet verify`: functions, formulas as text, and the library's own operations."""

import json
import re
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import funcnet as fn
from funcnet.cli import _cases, main, verify
from tests.budget import few

MODEL = """
import jax.numpy as jnp
from beside import double

SCALE = 2.0

def affine(x, w, b=0.0):
    return double(x @ w) + b

def right(x, w, dy):
    return 2 * dy @ w.T, 2 * x.T @ dy

def wrong(x, w, dy):
    return 2 * dy @ w.T, -2 * x.T @ dy

def look_up(table, ids):
    return table[ids]

def rows(table, ids, dy):
    return jnp.zeros_like(table).at[ids].add(dy), None

class Square:
    def forward(x):
        return x * x

    def backward(x, dy):
        return 2 * x * dy
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with somebody's files."""
    (tmp_path / "somebodys_model.py").write_text(MODEL)
    (tmp_path / "beside.py").write_text("double = lambda x: 2 * x\n")
    (tmp_path / "needs_zzz.py").write_text("import zzz\n")
    (tmp_path / "stops.py").write_text("raise SystemExit(3)\n")
    (tmp_path / "fails.py").write_text("x = 1 / 0\n")
    (tmp_path / "no_python.py").write_text("def f(:\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    modules, path = set(sys.modules), list(sys.path)
    yield tmp_path
    assert sys.path == path, "the folder is on the path only while somebody's file is imported"
    for name in set(sys.modules) - modules:
        if getattr(sys.modules[name], "__file__", None) and str(tmp_path) in str(sys.modules[name].__file__):
            del sys.modules[name]


def call(capsys, *args):
    """Exit code, standard output, standard error."""
    code = main(["verify", *map(str, args)])
    return code, *capsys.readouterr()


def refused(capsys, *args):
    """What standard error says, without the name of the command."""
    code, out, err = call(capsys, *args)
    assert (code, out) == (2, "")
    assert err.startswith("funcnet verify: ")
    return err.removeprefix("funcnet verify: ").removesuffix("\n")


def shapes(*texts):
    return [part for text in texts for part in ("--shape", text)]


def grads(*texts):
    return [part for text in texts for part in ("--grad", text)]


XW = shapes("x=7,11", "w=11,13")


# ---- functions --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", few(("somebodys_model", "somebodys_model.py", "./somebodys_model.py"), 2))
def test_functions_of_a_module_or_file(capsys, folder, place):
    code, out, err = call(capsys, f"{place}:affine", f"{place}:right", *XW)
    assert (code, err) == (0, "")
    assert out.endswith("\n2 of 2 gradients right\n")
    code, out, _ = call(capsys, f"{place}:affine", f"{place}:wrong", *XW)
    assert code == 1
    assert out.endswith("\n1 of 2 gradients WRONG\n")
    assert "WRONG: sign" in out


def test_methods_scalars_and_integers(capsys, folder):
    m = "somebodys_model"
    assert call(capsys, f"{m}:Square.forward", f"{m}:Square.backward", *shapes("x="))[0] == 0
    ids = shapes("table=3,5", "ids=7:int32")
    assert call(capsys, f"{m}:look_up", f"{m}:rows", *ids)[0] == 0


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (
            ["nowhere.py:f", "nowhere.py:g"],
            "there is no file nowhere.py",
        ),
        (["nowhere:f", "nowhere:g"], "there is no module 'nowhere', neither here nor installed"),
        (
            ["linear"],
            "there is no module 'linear', neither here nor installed; of the library: --op linear",
        ),
        (["nowhere.deep:f", "nowhere:g"], "there is no module 'nowhere.deep', neither here nor installed"),
        (["needs_zzz:f", "needs_zzz:g"], "needs_zzz cannot be imported: No module named 'zzz'"),
        (["needs_zzz.py:f", "stops:g"], "needs_zzz.py cannot be imported: No module named 'zzz'"),
        (["stops:f", "stops:g"], "stops cannot be imported: SystemExit: 3"),
        (["fails.py:f", "stops:g"], "fails.py cannot be imported: ZeroDivisionError: division by zero"),
        (["somebodys_model", "x:y"], "somebodys_model: expected MODULE:NAME or FILE.py:NAME"),
        (["somebodys_model:", "x:y"], "somebodys_model:: expected MODULE:NAME or FILE.py:NAME"),
        (["somebodys_model:affin", "x:y"], "somebodys_model has no function 'affin': perhaps affine"),
        (["somebodys_model:SCALE", "x:y"], "somebodys_model:SCALE is not a function but a float"),
        (
            ["somebodys_model:affine"],
            "two functions are needed, not 'somebodys_model:affine', or a loss with --model "
            "(funcnet verify --help)",
        ),
        (
            ["somebodys_model:affine", "somebodys_model:right", *shapes("x=7,11")],
            "argument w of somebodys_model:affine has no shape: --shape w=...",
        ),
        (
            ["somebodys_model:affine", "somebodys_model:right", *XW, *shapes("z=3")],
            "--shape z: somebodys_model:affine has no such argument: there are x, w, b",
        ),
    ],
)
def test_what_cannot_be_loaded(capsys, folder, args, line):
    assert refused(capsys, *args) == line


def test_a_file_that_is_no_python(capsys, folder):
    assert refused(capsys, "no_python.py:f", "x:y").startswith("no_python.py cannot be imported: SyntaxError")


def test_shapes_that_do_not_fit_the_functions(capsys, folder):
    args = ["somebodys_model:affine", "somebodys_model:right", *shapes("x=7,11", "w=5,13")]
    line = refused(capsys, *args)
    assert "forward pass does not run" in line
    assert "\n" not in line


# ---- the rules of a file, and of a model -------------------------------------------------------------------

RULED = """
import jax
import jax.numpy as jnp

@jax.custom_vjp
def wave(x):
    return jnp.sin(x)

def wave_backward(x, dy):
    return (dy * jnp.cos(x) * FACTOR,)

wave.defvjp(lambda x: (jnp.sin(x), x), wave_backward)

@jax.custom_jvp
def scaled(x, s):
    return x * s

@scaled.defjvp
def scaled_forward(primals, tangents):
    (x, s), (dx, ds) = primals, tangents
    return x * s, dx * s + x * ds

def loss(params, batch):
    return wave(batch @ params["w"]).sum()

def rare(params, batch):
    y = batch @ params["w"]
    return jax.lax.cond(y.sum() > 1e9, wave, jnp.cos, y).sum()

params = {"w": jnp.ones((3, 2))}

def batch():
    return jnp.ones((4, 3)) / 7
"""


@pytest.mark.parametrize(("factor", "code"), few([("1.2", 1), ("1", 0)], 1))
def test_the_rules_of_a_file_and_of_a_model(capsys, folder, factor, code):
    (folder / "ruled.py").write_text(RULED.replace("FACTOR", factor))
    given, out, err = call(capsys, "ruled.py", *shapes("x=2,3", "s=3"))
    assert (given, err) == (code, "")
    assert out.endswith("\n3 of 3 gradients right\n" if code == 0 else "\n1 of 3 gradients WRONG\n")
    assert code == 0 or "write: `return (dy * jnp.cos(x),)` (ruled.py:10)" in out
    given, out, err = call(capsys, "ruled.py:loss", "--model")
    assert (given, err) == (code, "")
    assert "ruled.py:9" in out


@pytest.mark.slow
def test_the_derivative_of_a_rule_is_verified_if_asked(capsys, folder):
    stopped = RULED.replace("FACTOR", "1").replace("jnp.cos(x) * 1", "jax.lax.stop_gradient(jnp.cos(x))")
    (folder / "ruled.py").write_text(stopped)
    given = ["ruled.py", *shapes("x=3", "s=3"), "--budget", "0"]
    assert call(capsys, *given)[0] == 0
    code, out, _ = call(capsys, *given, "--order", "2")
    assert code == 1
    assert re.search(r"pullback of wave +x .*WRONG", out)
    assert re.search(r"pullback of scaled +dy .*right", out)


def test_what_is_not_verified_has_an_exit_code(capsys, folder):
    (folder / "ruled.py").write_text(RULED.replace("FACTOR", "1"))
    code, out, _ = call(capsys, "ruled.py", *shapes("x=2,3"))
    assert code == 4
    assert "not verified: its argument s has no shape: --shape s=... (ruled.py:" in out
    assert out.endswith("\n1 of 2 gradients verified, and right\n")
    code, out, _ = call(capsys, "ruled.py:rare", "--model")
    assert code == 4
    assert "not verified: it was not run" in out
    assert call(capsys, "ruled.py:rare", "--model", "--allow", "wave")[0] == 0
    code, out, _ = call(capsys, "ruled.py:rare", "--model", "--annotate", "github")
    assert code == 4
    assert "\n::warning file=ruled.py,line=9,title=wave::not verified: it was not run" in out
    assert refused(capsys, "ruled.py:rare", "--model", "--annotate", "gitlab").startswith("no form of annot")


HIDDEN = """
import jax, jax.numpy as jnp

@jax.custom_gradient
def squash(x):
    y = jnp.tanh(x)
    return y, lambda dy: dy * (1 - y)

tanh = jax.custom_jvp(jnp.tanh)
tanh.defjvps(lambda t, y, x: t * (1 - y))

class Functions:
    @staticmethod
    @jax.custom_jvp
    def scaled(x, bias=None, gain=None):
        return x if gain is None else x * gain

    scaled.__func__.defjvp(lambda p, t: (p[0] * p[2], t[0] * p[2] + 2 * p[0] * t[2]))
"""


@pytest.mark.slow
def test_rules_of_a_file_that_are_no_functions_with_rules(capsys, folder):
    (folder / "hidden.py").write_text(HIDDEN)
    code, out, _ = call(capsys, "hidden.py", *shapes("x=2,3", "gain=3"), "--budget", "0")
    assert code == 1
    assert [line.split()[:2] for line in out.splitlines() if "WRONG:" in line] == [
        ["squash", "x"], ["tanh", "x"], ["scaled", "gain"],
    ]  # fmt: skip
    assert "(hidden.py:4)" in out
    assert out.endswith("\n3 of 4 gradients WRONG\n")


def test_files_without_rules_and_models_without_batches(capsys, folder):
    m = "somebodys_model"
    assert refused(capsys, m).startswith(f"{m} defines no derivative rule: give FORWARD and BACKWARD")
    assert refused(capsys, f"{m}:affine", "--model").startswith(
        f"{m} holds no params: a value, or a function"
    )
    assert refused(capsys, "--model").startswith("--model goes with one function, the loss")
    assert refused(capsys, f"{m}:affine", "--allow", "x").startswith("--model goes with one function")
    assert refused(capsys, f"{m}:affine", "--model", *shapes("x=3")).startswith(
        "--shape does not go with --model"
    )


def test_a_result_that_is_nowhere_finite(capsys):
    line = refused(capsys, "--forward", "x / 0", *shapes("x=3"), *grads("x = dy"))
    assert line.startswith("--forward: x / 0 cannot be computed: division by zero")


# ---- formulas as text -------------------------------------------------------------------------------------

AFFINE = ["--forward", "x @ w + b", *XW, *shapes("b=13")]


def test_formulas(capsys):
    code, out, err = call(capsys, *AFFINE, *grads("x = dy @ w.T", "w = x.T @ dy", "b=dy.sum(0)"))
    assert (code, err) == (0, "")
    assert out.endswith("\n3 of 3 gradients right\n")
    code, out, _ = call(capsys, *AFFINE, *grads("x = dy @ w.T", "w = -x.T @ dy", "b = dy.mean(0)"))
    assert code == 1
    assert "w: sign" in out
    assert out.endswith("\n2 of 3 gradients WRONG\n")


def test_y_and_arguments_that_are_not_differentiated(capsys):
    softmax = [*grads("x = y / scale * (dy * scale - (dy * y).sum(-1, keepdims=True))")]
    code, out, _ = call(capsys, "--forward", "softmax(x) * scale", *shapes("x=7,11", "scale="), *softmax)
    assert code == 0, out
    assert "1 of 1 gradients right" in out
    ids = ["--forward", "w[ids]", *shapes("w=11,3", "ids=7:int32")]
    assert call(capsys, *ids, *grads("w = one_hot(ids, w.shape[0]).T @ dy"))[0] == 0


def test_the_order_of_the_options_does_not_matter(capsys):
    swapped = ["--forward", "x @ w", *shapes("w=11,13", "x=7,11"), *grads("x = dy @ w.T", "w = x.T @ dy")]
    assert call(capsys, *swapped)[0] == 0


def test_a_formula_may_begin_with_a_minus_sign(capsys):
    assert call(capsys, "--forward", "-x * x", *shapes("x=7"), *grads("x = -2 * x * dy"))[0] == 0


QUADRATIC = ["--forward", "x @ A @ x", *shapes("x=5", "A=5,5")]


WHOLE = [
    ([*QUADRATIC, *grads("x = 2*A@x")], "x = (A + A.T)@x"),
    (["--forward", "tanh(x)", *shapes("x=7,5"), *grads("x = dy * (1 - y)")], "x = dy * (1 - y ** 2)"),
    ([*QUADRATIC, *grads("x = dy * A @ x", "A = dy * outer(x, x)")], "x = dy * (A + A.T) @ x"),
    (["--forward", "x @ w", *XW, *grads("x = dy @ w.T", "w = dy.T @ x")], "w = x.T @ dy"),
    (["--forward", "logdet(A)", *shapes("A=5,5"), *grads("A = dy * inv(A)")], "A = dy * inv(A).T"),
]


@pytest.mark.parametrize(("args", "right"), few(WHOLE, 2))
def test_the_whole_right_formula_is_given(capsys, args, right):
    code, out, _ = call(capsys, *args)
    assert code == 1
    assert f"write: `{right}`" in out
    name = right.partition(" ")[0]
    args = [right if arg.startswith(f"{name} = ") else arg for arg in args]
    assert call(capsys, *args)[0] == 0


def test_a_formula_that_holds_for_symmetric_matrices(capsys):
    code, out, _ = call(capsys, *QUADRATIC, *grads("x = 2*A@x"))
    assert code == 1
    assert "right where A is symmetric; write: `x = (A + A.T)@x`" in out
    assert "note: a gradient without dy is taken for that of dy = 1\n" in out


def test_what_takes_too_long_is_refused_before_it_runs(capsys, monkeypatch):
    chain = ["--forward", " @ ".join(["A"] * 45), *shapes("A=2000,2000"), *grads("A = dy")]
    refused_ = r"to verify this takes \de\+13 operations, more than 1e\+13: --force runs it"
    assert re.fullmatch(refused_, refused(capsys, *chain))
    large = ["--forward", " + ".join(["outer(x, x)"] * 40), *shapes("x=4096"), *grads("x = x")]
    assert re.search("bytes on the way, more than 4e[+]09: --force runs it", refused(capsys, *large))
    small = ["--forward", "x @ w", *XW, *grads("x = dy @ w.T")]
    monkeypatch.setattr("funcnet.cli.verify.MAX_FLOPS", 1000.0)
    refused(capsys, *small)
    assert call(capsys, *small, "--force")[0] == 0


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (
            ["--forward", "x", "--shape", "x=" + ",".join(["1"] * 70), *grads("x = dy")],
            "--shape x=...: 70 axes, more than 32",
        ),
        (
            ["--forward", "x / 0", *XW, *grads("x = dy")],
            "--forward: x / 0 cannot be computed: division by zero\n  x / 0\n  ^^^^^",
        ),
        (
            ["--forward", "x @ w.__class__", *XW, *grads("x = dy")],
            '--forward: "__class__" is not allowed here; attributes are T, mT, shape, size, ndim, '
            "methods sum, mean, max, min, var, std, reshape, transpose\n"
            "  x @ w.__class__\n"
            "        ^^^^^^^^^",
        ),
        (
            ["--forward", "x @ w", *XW, *grads("x = dy @ W.T")],
            '--grad x: there is no "W": there are x, w, dy, pi, e\n  dy @ W.T\n       ^',
        ),
        (
            ["--forward", "x @ w + b", *XW, *grads("x = dy @ w.T")],
            '--forward: there is no "b": there are x, w, pi, e\n  x @ w + b\n          ^',
        ),
        (
            ["--forward", "x +", *XW, *grads("x = dy")],
            "--forward: the formula stops too early\n  x +\n     ^",
        ),
        (["--forward", "x", *XW], "no gradient is given: --grad NAME=FORMULA (funcnet verify --help)"),
        (
            ["--forward", "x", *XW, *grads("z = dy")],
            "--grad z: there is no such argument: --shape gives x, w",
        ),
        (
            ["--forward", "x", *XW, *grads("dy")],
            '--grad dy: expected NAME=FORMULA, such as "x = dy @ w.T"',
        ),
        (["--forward", "x", *XW, *grads("x = dy", "x = y")], "--grad x is given twice"),
        (
            ["--forward", "x", *shapes("x=7", "i=3:int32"), *grads("i = dy")],
            "--grad i: i is int32 and has no gradient",
        ),
        (
            ["--forward", "x", "--shape", "x 7"],
            "--shape x 7: expected NAME=SIZES, such as x=7,11 or s= or ids=7:int32",
        ),
        (
            ["--forward", "x", "--shape", "x=7,"],
            "--shape x=7,: expected NAME=SIZES, such as x=7,11 or s= or ids=7:int32",
        ),
        (
            ["--forward", "x", "--shape", "x=-7"],
            "--shape x=-7: expected NAME=SIZES, such as x=7,11 or s= or ids=7:int32",
        ),
        (["--forward", "x", *shapes("x=7", "x=8")], "--shape x=8: x has a shape already"),
        (["--forward", "x", "--shape", "dy=7"], "--shape dy=7: 'dy' cannot be the name of an argument"),
        (["--forward", "x", "--shape", "if=7"], "--shape if=7: 'if' cannot be the name of an argument"),
        (
            ["--forward", "x", "--shape", "x=7:int4"],
            "no dtype 'int4': there are float32, float64, bfloat16, float16, int32, bool (--shape x=7:int4)",
        ),
        (
            ["--forward", "x", "--shape", "x=99999,99999"],
            "--shape x=99999,99999: 9,999,800,001 elements, more than 16,777,216",
        ),
        (
            [],
            "nothing to verify: give one of FORWARD BACKWARD, --forward, --op, --all, --example "
            "(funcnet verify --help)",
        ),
        (
            ["--all", "--op", "conv"],
            "--op and --all do not go together: give one of FORWARD BACKWARD, --forward, --op, --all, "
            "--example (funcnet verify --help)",
        ),
        (["--all", *grads("x = dy")], "--grad goes with --forward (funcnet verify --help)"),
        (
            ["--op", "relu", *XW],
            "--shape does not go with --op or --all, which have arguments of their own",
        ),
        (["--op", "relu", "--seed", "-1"], "--seed is -1: expected 0 to 4294967295"),
        (["--op", "relu", "--budget", "nan"], "--budget is nan: expected seconds"),
        (["--op", "relu", "--order", "3"], "--order is 3: expected 1 or 2"),
        (["--all", "--order", "2"], "--order does not go with --model or --all"),
        (["--op", "relu", "--html", "no/page.html"], "no/page.html: there is no folder no"),
    ],
)
def test_refused(capsys, folder, args, text):
    assert refused(capsys, *args) == text


def test_shapes_that_do_not_fit_a_formula(capsys):
    text = refused(capsys, "--forward", "x @ w", *XW, *grads("x = dy @ w"))
    assert text.startswith(
        "--grad x: dy @ w cannot be computed where dy is float32[7, 13], w is float32[11, 13]"
    )
    assert text.endswith("\n  dy @ w\n  ^^^^^^")
    text = refused(capsys, "--forward", "x @ w.T", *XW, *grads("x = dy @ w"))
    assert text.startswith("--forward: x @ w.T cannot be computed where x is float32[7, 11]")


# ---- the library's own ------------------------------------------------------------------------------------


def test_an_operation(capsys):
    code, out, err = call(capsys, "--op", "rms_norm")
    assert (code, err) == (0, "")
    assert out.count("\nrms_norm ") == 4
    assert out.endswith("\n4 of 4 gradients right\n")
    assert refused(capsys, "--op", "rms_nrom").startswith(
        "no operation 'rms_nrom': there are adaptive_avg_pool"
    )


def test_all_operations_as_a_table(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(_cases, "CASES", {name: _cases.CASES[name] for name in ("softmax", "relu")})
    code, out, err = call(capsys, "--all", "--json", tmp_path / "report.json")
    assert (code, err) == (0, "")
    lines = [line.split() for line in out.splitlines()]
    assert lines[0] == ["operation", "cases", "float64", "float32", "bfloat16", "laws"]
    assert [(line[0], line[1], *line[-3:]) for line in lines[1:3]] == [
        ("relu", "1", "4", "of", "4"),
        ("softmax", "2", "4", "of", "4"),
    ]
    assert out.endswith("\n2 of 2 gradients right\n")
    rows = json.loads((tmp_path / "report.json").read_text())["rows"]
    assert [(row["operation"], row["shapes"]) for row in rows] == [
        ("relu", "7×11"),
        ("softmax", "7×11 and 1 more"),
    ]


def test_every_operation_has_cases():
    assert set(_cases.CASES) == set(fn._OPERATIONS)


@pytest.mark.parametrize("dtype", few(_cases.DTYPES, ("float64",)))
@pytest.mark.parametrize("name", sorted(_cases.CASES))
def test_every_case_fits_its_operation(name, dtype):
    operation = getattr(fn, name)
    for case in _cases.CASES[name]:
        args, options = _cases.draw(case, 0, dtype)
        out = jax.eval_shape(lambda *a, options=options: operation.apply(*a, **options), *args)
        assert all(v.size for v in jax.tree.leaves((args, out)))


def cube(**changes):
    """An operation, right but for `changes`."""
    right = {
        "reference": lambda x: x * x * x,
        "apply": lambda x: x * x * x,
        "vjp": lambda x: (x * x * x, jax.tree_util.Partial(lambda x, dy: (3 * x * x * dy,), x)),
    }
    operation = types.ModuleType("cube")
    vars(operation).update(right | changes)
    return operation


@jax.custom_vjp
def flat(x):
    return x * x * x


flat.defvjp(lambda x: (flat(x), x), lambda x, dy: (jnp.zeros_like(dy),))
BROKEN = {
    "apply = reference": {"apply": lambda x: x * x * x * 1.0001},
    "vjp = jax.vjp(reference)": {
        "vjp": lambda x: (x, jax.tree_util.Partial(lambda x, dy: (3 * x * dy,), x)),
    },
    "jax.vjp(apply) = jax.vjp(reference)": {"apply": flat},
    "a gradient has the dtype of its leaf": {
        "vjp": lambda x: (x, jax.tree_util.Partial(lambda x, dy: ((3 * x * x * dy).astype("float64"),), x)),
    },
}


def test_the_laws_hold_for_what_is_right():
    measured = _cases.measure(cube(), _cases.CASES["relu"][0], 0)
    assert measured.laws == _cases.LAWS
    assert measured.errors["float64"] < 1e-15 < measured.errors["float32"] < 1e-6
    assert measured.errors["bfloat16"] < 0.02


@pytest.mark.parametrize("law", _cases.LAWS)
def test_each_law_rejects_what_breaks_it(law):
    measured = _cases.measure(cube(**BROKEN[law]), _cases.CASES["relu"][0], 0)
    assert law not in measured.laws


# ---- what it writes ---------------------------------------------------------------------------------------


def test_files(capsys, tmp_path):
    page, data = tmp_path / "page.html", tmp_path / "report.json"
    code, *_ = call(capsys, *AFFINE, *grads("w = -x.T @ dy"), "--html", page, "--json", data)
    assert code == 1
    report = json.loads(data.read_text("utf-8"))
    assert (report["ok"], report["verdict"]) == (False, "1 of 1 gradients WRONG")
    text = page.read_text("utf-8")
    assert "<pre>x @ w + b</pre>" in text
    assert "<pre><mark>w = -x.T @ dy</mark></pre>" in text


def test_the_sources_of_functions_are_shown(capsys, folder):
    call(capsys, "somebodys_model:affine", "somebodys_model:right", *XW, "--html", "page.html")
    assert "<b>return</b> 2 * dy @ w.T, 2 * x.T @ dy" in (folder / "page.html").read_text("utf-8")


def test_the_seed_draws_the_arguments():
    a, b, c = (verify._draw(["x=7,11", "n=5:int32", "m=7:bool", "h=3:bfloat16"], seed) for seed in (0, 0, 1))
    assert all(np.array_equal(a[name], b[name]) for name in a)
    assert not np.array_equal(a["x"], c["x"])
    assert {name: str(v.dtype) for name, v in a.items()} == {
        "x": "float32", "n": "int32", "m": "bool", "h": "bfloat16",
    }  # fmt: skip
    assert set(a["n"]) == {0, 1}


def test_help(capsys):
    code, out, err = call(capsys, "--help")
    assert (code, err) == (0, "")
    assert "usage: funcnet verify" in out
    for field in verify.Options.__dataclass_fields__:
        assert field == "functions" or f"--{field} " in out
    assert "Exit code 0: right; 1: something is wrong; 2: it could not be run; 4:" in out
