"""Commands, options and paths: what is wrong is one line and exit code 2."""

import errno
import io
import signal
import subprocess
import sys

import pytest

import funcnet
from funcnet import cli
from funcnet.cli import _mesh, main


def call(capsys, *args):
    """Exit code, standard output, standard error."""
    code = main([*map(str, args)])
    return code, *capsys.readouterr()


def refused(capsys, *args):
    """The one line that a wrong command line gives."""
    code, out, err = call(capsys, *args)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert err.startswith("funcnet")
    return err.strip()


def test_version(capsys):
    assert call(capsys, "--version") == (0, f"funcnet {funcnet.__version__}\n", "")


@pytest.mark.parametrize("args", [["--help"], ["-h"], ["train", "--help"]])
def test_help_names_everything(capsys, args):
    code, out, err = call(capsys, *args)
    assert (code, err) == (0, "")
    names = funcnet.tasks.TASKS if "train" in args else cli.COMMANDS
    assert all(f"\n  {name} " in out for name in names)


@pytest.mark.parametrize("task", ["digits", "fashion", "chars"])
def test_help_of_a_task_explains_its_options(capsys, task):
    code, out, err = call(capsys, "train", task, "--help")
    assert (code, err) == (0, "")
    module = getattr(funcnet.tasks, task)
    names = [*module.Options.__dataclass_fields__, *module.Training.__dataclass_fields__]
    names += ["resume", "verify", *_mesh.Devices.__dataclass_fields__]
    for name in names:
        assert f"--{name.replace('_', '-')} " in out
    assert "--out DIR" in out
    assert out.count("default:") == len(names) + 1
    assert "{adamw,sgd,lion,adafactor,muon,normuon,soap,shampoo}" in out
    assert "{cosine,wsd,linear,constant}" in out
    assert "{float32,bfloat16,float16}" in out
    assert "\x1b" not in out


@pytest.mark.parametrize(
    "command",
    ["predict", "generate", "compare", "summary", "pca", "xray", "plan", "verify", "derive", "doctor"],
)
def test_help_of_a_command(capsys, command):
    code, out, err = call(capsys, command, "--help")
    assert (code, err) == (0, "")
    assert f"usage: funcnet {command}" in out


def test_wrong_commands(capsys):
    known = f"{', '.join(cli.COMMANDS)} (funcnet --help)"
    assert refused(capsys, "trian") == f"funcnet: no command 'trian': there are {known}"
    tasks = "digits, fashion, chars, tones, speech"
    assert refused(capsys, "train", "digit") == (
        f"funcnet train: no task 'digit': there are {tasks} (funcnet train --help)"
    )


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            "train digits --epoch 3",
            "unrecognized options: --epoch, 3; perhaps --epochs (funcnet train digits",
        ),
        ("train digits --epochs x", "error parsing --epochs: invalid literal for int() with base 10: 'x'"),
        ("train digits --epochs", "missing value for argument '--epochs'"),
        ("train digits more", "unrecognized options: more (funcnet train digits --help)"),
        ("train digits --epochs 0", "epochs is 0; expected 1 to 10000"),
        ("train digits --epochs 10001", "epochs is 10001; expected 1 to 10000"),
        ("train digits --weight-decay inf", "weight_decay is inf; expected 0 or more"),
        ("train chars --minutes inf", "minutes is inf; expected 0.01 or more"),
        ("train chars --minutes 1e400", "minutes is inf; expected 0.01 or more"),
        ("train chars --minutes nan", "minutes is nan; expected 0.01 or more"),
        ("train chars --minutes -1", "minutes is -1.0; expected 0.01 or more"),
        ("train chars --steps 2147483648", "steps is 2147483648; expected 1 to 2147483647"),
        (
            "train digits --seed 18446744073709551616",
            "seed is 18446744073709551616; expected 0 to 4294967295",
        ),
        ("train chars --seed 4294967297", "seed is 4294967297; expected 0 to 4294967295"),
        ("train digits --batch 2000", "batch is 2000; expected 1 to 1437"),
        ("train digits --learning-rate nan", "learning_rate is nan; expected 0 to 1"),
        ("train digits --minutes 0", "minutes is 0.0; expected 0.01 or more"),
        ("train digits --optimizer adam", "invalid choice 'adam'"),
        ("train digits --schedule cos", "invalid choice 'cos'"),
        ("train digits --dtype float64", "invalid choice 'float64'"),
        ("train digits --warmup -1", "warmup is -1; expected 0 to 2147483647"),
        ("train digits --clip 0", "clip is 0.0; expected 1e-30 or more"),
        ("train digits --accumulate 0", "accumulate is 0; expected 1 or more"),
        ("train digits --accumulate 3", "accumulate is 3, which does not divide a batch of 64"),
        ("train chars --accumulate 3", "accumulate is 3, which does not divide a batch of 8"),
        ("train digits --average 1", "average is 1.0; expected 0 to 0.99999"),
        ("train digits --checkpoint-every 0", "checkpoint_every is 0; expected 1 to 2147483647"),
        (
            "train digits --resume",
            "--resume goes on in a run folder: --out DIR (funcnet train digits --help)",
        ),
        ("train fashion --data nowhere", "nowhere/train-images-idx3-ubyte.gz is not there"),
        ("train chars --text nowhere", "No such file or directory: 'nowhere'"),
        ("predict", "missing from funcnet predict: RUN FILE (funcnet predict --help)"),
        ("predict run", "missing from funcnet predict: FILE (funcnet predict --help)"),
        ("predict nowhere file", "nowhere is no run folder: there is no such folder"),
        ("generate", "missing from funcnet generate: FOLDER --prompt STR (funcnet generate --help)"),
        ("generate nowhere --prompt a", "nowhere is no run folder: there is no such folder"),
        ("generate nowhere --prompt a --tokens x", "error parsing --tokens: invalid literal for int()"),
        ("summary", "missing from funcnet summary: TASK|RUN"),
        (
            "summary nowhere",
            "'nowhere' is neither a task (digits, fashion, chars, tones, speech) nor a run folder",
        ),
        ("doctor --quick", "unrecognized options: --quick (funcnet doctor --help)"),
    ],
)
def test_wrong_options_and_paths(capsys, tmp_path, monkeypatch, args, message):
    monkeypatch.chdir(tmp_path)
    assert message in refused(capsys, *args.split())
    assert list(tmp_path.iterdir()) == [], "nothing is written"


def test_a_file_is_no_folder(capsys, tmp_path):
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "run"):
        assert str(tmp_path / "file") in refused(capsys, "train", "digits", "--out", out)


def test_a_folder_in_use_is_refused(capsys, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    line = refused(capsys, "train", "digits", "--out", tmp_path)
    assert line == (
        f"funcnet train: the folder {tmp_path} is not empty; expected a folder that is new or empty"
    )


def test_a_missing_extra(capsys, monkeypatch):
    monkeypatch.setattr(cli, "_NEEDED", ("rich", "no_such_package"))
    line = refused(capsys, "summary", "digits")
    assert line == "funcnet summary: no_such_package not installed: pip install 'funcnet[cli]'"


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (KeyboardInterrupt(), 130, "funcnet doctor: interrupted"),
        (OSError(28, "No space left on device"), 1, "funcnet doctor: [Errno 28] No space left on device"),
        (
            PermissionError(13, "Permission denied", "x"),
            2,
            "funcnet doctor: [Errno 13] Permission denied: 'x'",
        ),
        (
            OSError(errno.ENAMETOOLONG, "Too long", "x"),
            2,
            f"funcnet doctor: [Errno {errno.ENAMETOOLONG}] Too long: 'x'",
        ),
        (funcnet.errors.ShapeError("a\nb.", hint="c"), 2, "funcnet doctor: a; b; hint c"),
    ],
)
def test_exit_codes(capsys, monkeypatch, error, code, line):
    def fail(*_):
        raise error

    monkeypatch.setattr("funcnet.cli.doctor.run", fail)
    assert call(capsys, "doctor") == (code, "", line + "\n")


def test_a_fault_of_the_program_keeps_its_traceback(capsys, monkeypatch):
    """And a code of its own: 1 would say that a gradient is wrong."""
    monkeypatch.setattr("funcnet.cli.doctor.run", lambda args: 1 / 0)
    code, out, err = call(capsys, "doctor")
    assert (code, out) == (70, "")
    assert err.startswith("Traceback")
    assert err.endswith("ZeroDivisionError: division by zero\n")


@pytest.fixture
def encoded(monkeypatch):
    """Standard output and error in some encoding, which refuses what it has not, and what they hold."""

    def begin(encoding):
        streams = {name: io.TextIOWrapper(io.BytesIO(), encoding) for name in ("stdout", "stderr")}
        for name, stream in streams.items():
            monkeypatch.setattr(sys, name, stream)

        def end():
            for stream in streams.values():
                stream.flush()
            return [stream.buffer.getvalue().decode(encoding) for stream in streams.values()]

        return end

    return begin


@pytest.mark.parametrize(
    ("encoding", "shapes"), [("ascii", "5x3, 3"), ("cp1252", "5×3, 3"), ("shift_jis", "5×3, 3")]
)
def test_any_encoding(encoded, encoding, shapes):
    end = encoded(encoding)
    args = "verify --forward x@w --shape x=5,3 --shape w=3 --grad x=outer(dy,w) --grad w=x.T@dy"
    assert main(args.split()) == 0
    out, err = end()
    assert err == ""
    assert f" {shapes} " in out
    assert out.endswith("2 gradients right\n")


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_errors_in_any_encoding(encoded, encoding):
    end = encoded(encoding)
    assert main(["summary", "× ≤ \u1f40 \udcff"]) == 2
    written = {
        "ascii": "x <= \\u1f40 \\udcff",
        "cp1252": "× <= \\u1f40 \\udcff",
        "utf-8": "× ≤ \u1f40 \\udcff",
    }
    assert end()[1].startswith(f"funcnet summary: '{written[encoding]}' is neither a task")


def test_help_does_not_wait_for_jax():
    code = (
        "import sys; from funcnet.cli import main; main(['--help']); main(['train', '--help']);"
        "print([name for name in ('jax', 'matplotlib', 'sklearn') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_a_reader_that_goes_away():
    code = "from funcnet.cli import main; import sys; sys.exit(main(['summary', 'digits']))"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.close()
    _, err = process.communicate()
    assert b"Traceback" not in err


def test_the_second_ctrl_c_ends_what_no_handler_reaches():
    # A mutex that is locked twice: no Python runs again, as while XLA compiles.
    code = """
import contextlib, ctypes, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from funcnet.cli import doctor, main
def hang(args):
    mutex, lock = ctypes.create_string_buffer(256), ctypes.CDLL(None).pthread_mutex_lock
    while True:
        with contextlib.suppress(KeyboardInterrupt):
            print("hanging", flush=True)
            while True:
                lock(mutex)
doctor.run = hang
sys.exit(main(["doctor"]))
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "hanging\n"
        process.send_signal(signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.2)
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_other_signals_end_every_command(capsys, monkeypatch, number):
    monkeypatch.setattr("funcnet.cli.doctor.run", lambda args: signal.raise_signal(number))
    assert call(capsys, "doctor") == (128 + number, "", "funcnet doctor: interrupted\n")
    assert signal.getsignal(number) == signal.SIG_DFL


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), BrokenPipeError()])
def test_standard_output_that_fails_at_the_end(monkeypatch, error):
    class Late(io.StringIO):
        def flush(self):
            raise error

    monkeypatch.setattr(sys, "stdout", Late())
    assert main(["--version"]) == 1


def test_no_standard_output_at_all(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    assert main(["--version"]) == 0
