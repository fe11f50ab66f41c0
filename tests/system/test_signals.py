import contextlib
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from dfkd.system import signals

WAITING = """
import sys, time
from dfkd.system import signals
signals.GRACE = 1.0
try:
    with signals.handled({how}):
        {body}
except KeyboardInterrupt as stop:
    print("interrupted", flush=True)
    sys.exit(stop.exit_status)
"""
PLAIN = 'print("ready", flush=True); time.sleep(30)'
# a mutex of the C library: waiting for it goes on after a signal, and Python's handler does not run before its end
UNINTERRUPTIBLE = (
    "c = __import__('ctypes'); libc = c.CDLL(None); m = c.create_string_buffer(128); libc.pthread_mutex_lock(m);"
    ' print("ready", flush=True); libc.pthread_mutex_lock(m)'
)


@pytest.fixture
def started():
    """Start a process; none outlives its test, nor waits for longer than 60 s, as a pipe without a timeout would."""
    with contextlib.ExitStack() as at_the_end:

        def start(body, how=""):
            command = [sys.executable, "-c", WAITING.format(body=body, how=how)]
            process = at_the_end.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
            timer = threading.Timer(60, process.kill)
            timer.start()
            at_the_end.callback(process.kill)
            at_the_end.callback(timer.cancel)
            assert process.stdout.readline() == "ready\n"
            return process

        yield start


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_first_signal_interrupts_with_its_status(started, number, status):
    process = started(PLAIN)
    process.send_signal(number)
    assert (process.communicate(timeout=20)[0], process.returncode) == ("interrupted\n", status)


def test_a_second_signal_ends_a_block_that_finishes_its_step(started):
    body = (
        "with signals.stop_request() as stop:\n"
        '            print("ready", flush=True)\n'
        "            while stop.signal is None: time.sleep(0.01)\n"
        '            print("finishing", flush=True)\n'
        "            time.sleep(30)"
    )
    process = started(body)
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "finishing\n"
    time.sleep(1.5)  # longer than the grace: a block that finishes its step has all the time
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert (process.communicate(timeout=20)[0], process.returncode) == ("", 143)


def test_a_process_within_a_librarys_call_is_ended_after_the_grace(started):
    process = started(UNINTERRUPTIBLE)
    time.sleep(0.5)  # until it is within the call
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=20)
    assert (out, process.returncode) == ("", 143)


def test_a_block_is_told_and_decides():
    with pytest.raises(signals.Interrupted) as stopped, signals.handled(), signals.stop_request() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        while stop.signal is None:
            time.sleep(0.001)
        done = "its step"
    assert done and stopped.value.exit_status == 143


def test_handlers_are_put_back_and_an_ignored_signal_stays_ignored():
    before = signal.getsignal(signal.SIGTERM)
    ignored = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with signals.handled():
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
            assert signal.getsignal(signal.SIGTERM) is not before
        assert signal.getsignal(signal.SIGTERM) is before
    finally:
        signal.signal(signal.SIGINT, ignored)


def test_handled__signals_together_count_as_one(started):
    """A terminal's Ctrl-C reaches all processes, and their launcher passes it on."""
    body = (
        "with signals.stop_request() as stop:\n"
        '            print("ready", flush=True)\n'
        "            while stop.signal is None: time.sleep(0.05)\n"
        "            time.sleep(0.6); print('finished', flush=True)"
    )
    process = started(body, "together=30")
    process.send_signal(signal.SIGINT)
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    assert (process.communicate(timeout=20)[0], process.returncode) == ("finished\ninterrupted\n", 130)
