import errno
import io
import json
import re
import subprocess
import sys
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from funcnet.errors import FileFormatError
from funcnet.train import log
from funcnet.train.history import History
from funcnet.train.log import line, logs, metrics_file, terminal


def record(step, **more):
    return {"step": step, "loss": 0.5, "steps_per_second": 10.0, "seconds": step / 10, **more}


def test_lines_are_strict_json_and_are_appended(tmp_path):
    for part in ([record(1, accuracy=0.25)], [record(2, f=[1.0, float("inf")], g=float("nan"), h=3)]):
        with metrics_file(tmp_path / "run") as write:
            write(part)

    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    lines = (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    read = [json.loads(text, parse_constant=refuse) for text in lines]
    assert read == [record(1, accuracy=0.25), record(2, f=[1.0, None], g=None, h=3)]


def test_no_folder_no_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with logs([]) as write:
        write([record(1)])
    assert list(tmp_path.iterdir()) == []


def test_a_function_of_a_record_that_fails_is_left_out(tmp_path):
    seen = []

    def broken(entry):
        if entry["step"] == 2:
            raise RuntimeError("the server is gone")

    with logs([broken, seen.append, tmp_path]) as write:
        write([record(1)])
        with pytest.warns(UserWarning, match=r"broken failed, and training goes on .*server is gone"):
            write([record(2), record(3)])
        write([record(4)])
    assert [entry["step"] for entry in seen] == [1, 2, 3, 4]
    assert History.read(tmp_path / "metrics.jsonl") == seen


@pytest.mark.parametrize("block", [1, 2, 5])
def test_the_last_line_can_be_written_again(tmp_path, block):
    with metrics_file(tmp_path) as write:
        for begin in range(1, 6, block):
            write([record(step) for step in range(begin, min(begin + block, 6))])
        write([record(5, eval_loss=0.25)], True)
        write([record(6)])
    expected = [*map(record, range(1, 5)), record(5, eval_loss=0.25), record(6)]
    assert History.read(tmp_path / "metrics.jsonl") == expected


@pytest.mark.parametrize("tail", [b"", b'{"step": 9, "lo', b"\n"])
@pytest.mark.parametrize("lines", [0, 1, 3])
def test_a_run_that_goes_on_cuts_off_what_came_later(tmp_path, lines, tail):
    with metrics_file(tmp_path) as write:
        write([record(step, note="x" * 5000) for step in range(1, 5)])
    path = tmp_path / "metrics.jsonl"
    content = path.read_bytes()
    size = sum(map(len, content.splitlines(keepends=True)[:lines]))
    path.write_bytes(content + tail)
    for inside in (0, 7):  # within the next line, which was written again and became longer
        kept = [record(step, note="x" * 5000) for step in range(1, lines + 1 + bool(inside))]
        assert History.read(path, size + inside) == kept
    with metrics_file(tmp_path, size) as write:
        write([record(7)])
    assert [entry["step"] for entry in History.read(path)] == [*range(1, lines + 1), 7]
    with metrics_file(tmp_path, size) as write:
        if lines:
            write([record(lines, eval_loss=1.0)], True)
    assert len(History.read(path)) == lines
    assert not lines or History.read(path)[-1] == record(lines, eval_loss=1.0)


def test_a_file_that_lost_its_end_is_taken_as_it_is(tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1}\n{"step": 2}\n{"st')
    assert [entry["step"] for entry in History.read(tmp_path / "metrics.jsonl", 1000)] == [1, 2]
    with metrics_file(tmp_path, 1000) as write:
        write([record(2)])
    assert [entry["step"] for entry in History.read(tmp_path / "metrics.jsonl")] == [1, 2, 2]


@pytest.mark.parametrize("line", [b"[1]\n", b"{\n", b"\xff\n", b"[" * 100_000 + b"\n"])
def test_a_line_that_is_no_record(tmp_path, line):
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1}\n' + line)
    with pytest.raises(FileFormatError, match="line 2 is no record"):
        History.read(tmp_path / "metrics.jsonl")


class FullDisk:
    """A file that takes so many bytes and no more."""

    def __init__(self, file, room):
        self.file, self.room = file, room

    def __getattr__(self, name):
        return getattr(self.file, name)

    def write(self, data):
        if not self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = self.file.write(data[: self.room])
        self.room -= written
        return written


@pytest.fixture
def full_disk(monkeypatch):
    """The file that is opened next has room for 100 bytes; gives it once it is open."""
    opened = []

    @contextmanager
    def opening(path, mode, buffering):
        with open(path, mode, buffering=buffering) as file:
            opened.append(FullDisk(file, room=100))
            yield opened[0]

    monkeypatch.setattr(log, "open", opening, raising=False)
    return opened


def test_a_full_disk_leaves_out_whole_lines(tmp_path, full_disk):
    line = {"step": 1, "loss": 0.25}
    with metrics_file(tmp_path) as write:
        with pytest.warns(UserWarning, match=r"metrics\.jsonl cannot be written.*No space left") as warned:
            write([line] * 9)
        assert len(warned) == 1
        full_disk[0].room = 1000
        write([{"step": 10}])
    lines = (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(text) for text in lines] == [line] * 3 + [{"step": 10}]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_standard_output_that_cannot_be_written(monkeypatch, number):
    class Broken(io.StringIO):
        def write(self, text):
            raise OSError(number, "broken")

    monkeypatch.setattr(sys, "stdout", Broken())
    with terminal(2, progress=True) as (show, say):
        with pytest.warns(UserWarning, match="standard output cannot be written") as warned:
            show([record(1), record(2, eval_loss=0.5), record(3, eval_loss=0.5)])
        assert len(warned) == 1
        say("a message")


def test_a_closed_pipe_is_an_error(monkeypatch):
    class Closed(io.StringIO):
        def write(self, text):
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr(sys, "stdout", Closed())
    with terminal(2, progress=True) as (show, _), pytest.raises(BrokenPipeError):
        show([record(1)])


def test_without_standard_output(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    with terminal(2, progress=True) as (show, say):
        show([record(1)])
        say("nobody hears")


def test_a_killed_process_has_written_its_lines(tmp_path):
    program = (
        "import os, signal\n"
        "from funcnet.train.log import metrics_file\n"
        f"with metrics_file({str(tmp_path)!r}) as write:\n"
        "    for step in range(100):\n"
        "        write([{'step': step}])\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == -9
    lines = (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(text)["step"] for text in lines] == list(range(100))


def test_plain_lines_without_a_terminal(capsys, monkeypatch):
    now = 0.0
    monkeypatch.setattr(log, "time", SimpleNamespace(monotonic=lambda: now))
    with terminal(None, progress=True) as (show, say):
        for step in range(1, 60):
            now += 0.5
            show([record(step, **({"eval_loss": 0.25} if step == 7 else {}))])
        say("done")
    shown = capsys.readouterr().out.splitlines()
    assert [text.split()[1] for text in shown[:-1]] == ["1", "7", "27", "47"]  # every ten seconds, and 7
    assert shown[1] == "step 7  loss 0.5  eval_loss 0.25  10 steps/s"
    assert shown[-1] == "done"


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self):
        return True


@pytest.mark.parametrize("steps", [3, None])
def test_a_bar_on_a_terminal(monkeypatch, steps):
    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "160")
    with terminal(steps, progress=True) as (show, say):
        show([record(1)])
        show([record(2, eval_loss=0.25)])
        show([record(3)])
        say("a message [in brackets]")
    text = screen.getvalue()
    assert re.search(r"step 2  loss 0.5  eval_loss 0.25  10 steps/s *\r?\n", text), "it does not stay"
    assert not re.search(r"step 1 .* steps/s *\r?\n", text)
    assert "\x1b[" in text
    assert f"3/{steps or '?'}" in text
    assert "step 3  loss 0.5" in text
    assert "a message [in brackets]" in text


def test_a_terminal_without_rich_gets_plain_lines(monkeypatch):
    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setattr(log, "find_spec", lambda name: None)
    with terminal(1, progress=True) as (show, _):
        show([record(1)])
    assert screen.getvalue() == "step 1  loss 0.5  10 steps/s\n"


def test_silence(capsys):
    with terminal(1, progress=False) as (show, say):
        show([record(1)])
        say("nothing")
    assert capsys.readouterr().out == ""


def test_a_line_ends_with_the_speeds():
    fast = record(1, steps_per_second=1234.56, tokens_per_second=40.256, share_of_peak=0.38125)
    assert line(fast) == "step 1  loss 0.5  share_of_peak 0.3812  1,235 steps/s  40.3 tokens/s"


def test_a_line_shows_numbers_only():
    assert line(record(1, table=[1, 2], accuracy=1)) == "step 1  loss 0.5  accuracy 1  10 steps/s"
