"""A signal or a file asks a run to stop; both only set a flag."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from timebox.stop import Stop


def test_nobody_asked(tmp_path):
    assert Stop(tmp_path)() is None


def test_a_file_asks_and_is_answered_once(tmp_path):
    stop = Stop(tmp_path)
    (tmp_path / "stop").touch()
    assert stop() == "stop_file"
    stop.answered()
    assert stop() is None
    assert not (tmp_path / "stop").exists()
    (tmp_path / "stop").touch()
    assert stop() == "stop_file", "a new request counts"


def test_a_process_that_forwards_a_signal_says_so_in_the_file(tmp_path):
    (tmp_path / "stop").write_text("signal\n")
    assert Stop(tmp_path)() == "signal"


def test_a_file_of_an_earlier_session_is_forgotten_and_one_of_this_is_not(tmp_path):
    stop = Stop(tmp_path)
    (tmp_path / "stop").touch()
    stop.forget_before(time.time() + 5)
    assert stop() is None
    (tmp_path / "stop").touch()
    stop.forget_before(time.time() - 5)
    assert stop() == "stop_file"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_sets_the_flag_and_handlers_are_put_back(tmp_path, number):
    stop, before = Stop(tmp_path), signal.getsignal(number)
    with stop.signals():
        assert stop() is None
        assert signal.getsignal(number) is not before  # else this would end the tests
        os.kill(os.getpid(), number)
        assert stop() == "signal"
        stop.answered()
        assert stop() is None
    assert signal.getsignal(number) is before


def test_only_a_second_interrupt_raises(tmp_path):
    stop = Stop(tmp_path)
    with stop.signals():
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.5)
    stop = Stop(tmp_path)
    with stop.signals():
        os.kill(os.getpid(), signal.SIGINT)
        stop.answered()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.5)


def test_outside_the_main_thread_signals_are_left_alone(tmp_path):
    before, found = signal.getsignal(signal.SIGTERM), []

    def work():
        with Stop(tmp_path).signals():
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [before]
