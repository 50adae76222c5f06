"""`funcnet derive`: what is printed, the exit codes, and that what is printed passes `funcnet verify`."""

import re
import shlex
from pathlib import Path

import pytest

from funcnet.cli import main
from tests.budget import few
from tests.cli.test_main import call, refused

PAGE = (Path(__file__).parents[2] / "docs/derive.md").read_text()
OUTPUTS = re.findall(r"```console\n\$ (.*)\n((?:.*\n)*?)```", PAGE)


def test_the_page_has_outputs():
    assert len(OUTPUTS) == 3


@pytest.mark.parametrize(("command", "output"), few(OUTPUTS, 2), ids=["quadratic", "softmax", "attention"])
def test_the_page_shows_what_is_printed(capsys, command, output):
    assert main(shlex.split(command)[1:]) == 0
    assert capsys.readouterr().out == output


def test_a_quadratic_form_and_the_command_that_verifies_it(capsys):
    code, out, err = call(capsys, "derive", "--forward", "x.T @ A @ x", "--shape", "x=7", "--shape", "A=7,7")
    assert (code, err) == (0, "")
    command = shlex.split(out[out.index("funcnet verify") : out.index("\n\n2 of 2")].replace("\\\n", ""))
    assert main(command[1:]) == 0
    assert capsys.readouterr().out.endswith("2 of 2 gradients right\n")


def test_by_one_argument_where_a_matrix_is_symmetric(capsys):
    args = "--forward", "x @ A @ x", "--shape", "x=5", "--shape", "A=5,5", "--wrt", "x", "--symmetric", "A"
    code, out, _ = call(capsys, "derive", *args)
    assert code == 0
    assert "dx = 2 * A @ x\n" in out
    assert "funcnet verify" not in out  # which draws matrices that are not
    assert out.endswith("1 of 1 gradients derived, and verified (right where A is symmetric)\n")


def test_what_is_not_derived_has_an_exit_code_of_its_own(capsys):
    code, out, err = call(capsys, "derive", "--forward", "cumsum(x)", "--shape", "x=7")
    assert (code, err) == (5, "")
    assert "dx: not derived: there is no rule for cumsum(x)\n" in out
    assert out.endswith("nothing derived\n")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--forward", "x"], "funcnet derive: no argument has a shape: --shape x=7 (funcnet derive --help)"),
        (["--forward", "x", "--shape", "x"], "funcnet derive: --shape x: expected NAME=SIZES"),
        (["--forward", "x", "--shape", "x=2", "--seed", "-1"], "funcnet derive: --seed is -1"),
        (
            ["--forward", "x", "--shape", "x=2", "--wrt", "z"],
            "funcnet derive: derive: there is no argument 'z'",
        ),
    ],
)
def test_wrong_options(capsys, args, message):
    assert refused(capsys, "derive", *args).startswith(message)


def test_a_formula_that_is_none_is_pointed_at(capsys):
    code, out, err = call(capsys, "derive", "--forward", "x + z", "--shape", "x=7")
    assert (code, out) == (2, "")
    assert 'funcnet derive: --forward: there is no "z"' in err
    assert "\n      ^" in err


@pytest.mark.slow
def test_verify_gives_the_right_formula_where_no_edit_of_the_wrong_one_does(capsys):
    args = (
        "--forward",
        "norm(A @ x - b)",
        "--shape",
        "x=5",
        "--shape",
        "A=7,5",
        "--shape",
        "b=7",
        "--budget",
        "0.1",
    )
    wrong = "--grad", "x = sin(x)", "--grad", "b = dy * cos(b)"
    code, out, _ = call(capsys, "verify", *args, *wrong)
    assert code == 1
    assert "write: `x = A.T @ (A @ x - b) / y`" in out  # for dy = 1, as the wrong one was written
    assert "write: `b = -dy * (A @ x - b) / y`" in out
