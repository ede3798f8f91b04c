"""The listener: what a first and a second signal do, and that the grace period ends."""

import os
import signal
import threading

import pytest

from lightning_peft.lightning.signals import Listener, Stopped, exit_status, name_of


@pytest.fixture
def listener(monkeypatch):
    made = Listener()
    monkeypatch.setattr(made, "count_down", lambda number: None)
    return made


def test_it_raises_where_nothing_has_to_be_finished(listener):
    with pytest.raises(Stopped) as caught:
        listener.arrived(signal.SIGHUP)
    assert caught.value.code == exit_status(signal.SIGHUP) == 129


def test_a_signal_that_is_waited_for_is_noted_and_its_echo_is_not_a_second(listener):
    listener.waits = True
    listener.arrived(signal.SIGTERM)
    listener.arrived(signal.SIGTERM)  # timeout sends it to the process and to its group
    assert listener.number == signal.SIGTERM


def test_a_second_signal_ends_at_once(listener, monkeypatch):
    listener.waits = True
    listener.arrived(signal.SIGINT)
    listener._since -= 10
    with pytest.raises(KeyboardInterrupt):
        listener.arrived(signal.SIGINT)
    sent = []
    monkeypatch.setattr(signal, "signal", lambda number, handler: sent.append((number, handler)))
    monkeypatch.setattr(os, "kill", lambda process, number: sent.append((process, number)))
    listener.arrived(signal.SIGTERM)
    assert sent == [(signal.SIGTERM, signal.SIG_DFL), (os.getpid(), signal.SIGTERM)]


def test_one_that_obeys_its_parent_counts_once(listener):
    listener.waits = listener.obeys = True
    listener.arrived(signal.SIGTERM)
    listener._since -= 10
    listener.arrived(signal.SIGINT)
    assert listener.number == signal.SIGTERM


def test_jobs_are_told_once_and_then_waited_for(listener, monkeypatch):
    sent = []
    monkeypatch.setattr(os, "kill", lambda process, number: sent.append((process, number)))
    listener.jobs = lambda: [11, 12]
    listener.arrived(signal.SIGUSR1)  # it raises nothing: the jobs end first
    listener._tell_jobs()
    assert sent == [(11, signal.SIGTERM), (12, signal.SIGTERM)]


def test_a_rank_hands_a_signal_to_the_first_one(listener, monkeypatch):
    sent = []
    monkeypatch.setattr(os, "kill", lambda process, number: sent.append((process, number)))
    listener.superior = 7
    listener.arrived(signal.SIGTERM)
    assert (sent, listener.number) == ([(7, signal.SIGTERM)], None)


def test_the_grace_period_ends_the_process_after_its_last_words(monkeypatch):
    said, over = [], threading.Event()
    monkeypatch.setattr(os, "_exit", lambda status: (said.append(status), over.set()))
    listener = Listener()
    listener.grace = 0.01
    listener.waits = True
    listener.last_words.append(lambda number: said.append(name_of(number)))
    listener.arrived(signal.SIGTERM)
    assert over.wait(30)
    listener.forget_the_time()
    assert said[:2] == ["SIGTERM", 143]


def test_the_countdown_begins_although_the_main_thread_is_busy(monkeypatch):
    """A handler in Python waits for the main thread, which may hang in a library."""
    began = threading.Event()
    listener = Listener()
    monkeypatch.setattr(listener, "count_down", lambda number: began.set())
    monkeypatch.setattr(listener, "arrived", lambda number, frame: None)
    before = signal.getsignal(signal.SIGUSR2)
    with listener.listening():
        os.kill(os.getpid(), signal.SIGUSR2)
        assert began.wait(30)
    assert signal.getsignal(signal.SIGUSR2) == before
    assert signal.set_wakeup_fd(-1) == -1


def test_a_stop_survives_the_way_to_another_process():
    import pickle

    stop = pickle.loads(pickle.dumps(Stopped(signal.SIGTERM, None)))
    assert (stop.code, stop.number) == (143, signal.SIGTERM)
