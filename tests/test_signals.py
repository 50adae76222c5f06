"""Signals between two pieces of work, whoever holds them."""

import os
import signal
import threading

import pytest

from funcnet import _signals
from funcnet._signals import Stop, signals

TAKEN = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


@pytest.mark.parametrize("number", TAKEN)
def test_a_signal_is_noted_where_it_is_held_and_raised_elsewhere(number):
    before = [signal.getsignal(other) for other in TAKEN]
    with signals() as stop, stop.held():
        signal.raise_signal(number)
        assert stop.number == number
    with signals() as stop, pytest.raises(KeyboardInterrupt):
        signal.raise_signal(number)
    assert stop.number == number
    assert [signal.getsignal(other) for other in TAKEN] == before


def test_an_attempt_is_given_up():
    with signals() as stop, stop.held():
        assert stop.attempt(max, 2, 3) == 3
        assert stop.attempt(signal.raise_signal, signal.SIGTERM, otherwise="given up") == "given up"
        assert stop.number == signal.SIGTERM


@pytest.mark.parametrize(("number", "again"), [(signal.SIGINT, True), (signal.SIGHUP, False)])
def test_two_at_once_are_one_unless_a_hand_sent_them(number, again, monkeypatch):
    now = [5.0]
    monkeypatch.setattr(_signals.time, "monotonic", lambda: now[0])
    with signals() as stop, stop.held():
        signal.raise_signal(number)
        if again:
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(number)
        else:
            signal.raise_signal(number)
        now[0] += 1.0
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)


def test_the_outer_one_is_the_one():
    with signals() as outer, outer.held():
        with signals() as inner:
            assert inner is outer
        assert signal.getsignal(signal.SIGTERM) is outer
        signal.raise_signal(signal.SIGTERM)
        assert list(inner.until([1, 2])) == []


def test_what_the_program_handles_or_ignores_is_left_alone():
    mine = lambda *_: None
    before = signal.signal(signal.SIGINT, mine), signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals() as stop:
            assert set(stop.taken) == {signal.SIGTERM, signal.SIGUSR1}
            assert signal.getsignal(signal.SIGINT) is mine
    finally:
        signal.signal(signal.SIGINT, before[0])
        signal.signal(signal.SIGHUP, before[1])


def test_outside_the_main_thread_nothing_is_taken():
    taken = []

    def look():
        with signals() as stop:
            taken.append(stop.taken)

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert taken == [{}]


def test_the_listener_leaves_at_the_second(monkeypatch):
    left, times = [], iter([0.0, 1.0, 1.1, 1.2, 2.0])
    monkeypatch.setattr(_signals.time, "monotonic", lambda: next(times))
    source, tell = os.pipe()
    os.write(tell, bytes([signal.SIGUSR2, signal.SIGTERM, signal.SIGTERM, signal.SIGUSR2, signal.SIGHUP]))
    os.close(tell)
    _signals._listen(source, frozenset(TAKEN), left.append)
    assert left == [128 + signal.SIGHUP], "others do not count, nor does an echo"


def test_the_handler_of_signals_by_pipe_is_put_back():
    with _signals.exit_at_the_second(Stop()):  # takes none
        assert signal.set_wakeup_fd(-1) == -1
    with signals() as stop, _signals.exit_at_the_second(stop):
        listener = threading.enumerate()[-1]
    assert signal.set_wakeup_fd(-1) == -1
    listener.join(10)
    assert not listener.is_alive()
