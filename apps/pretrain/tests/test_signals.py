import signal

import pytest

from gpt_pretrain.signals import Interrupted, StopSignals


def test_first_signal_is_remembered_where_a_loop_waits_for_it_and_the_second_stops_at_once():
    with StopSignals() as signals:
        signals.wait_for_step = True
        signal.raise_signal(signal.SIGTERM)
        assert signals.received == signal.SIGTERM
        with pytest.raises(Interrupted) as caught:
            signal.raise_signal(signal.SIGINT)
    assert caught.value.exit_code == 130


def test_signal_stops_at_once_where_nothing_waits_for_it():
    with StopSignals(), pytest.raises(Interrupted) as caught:
        signal.raise_signal(signal.SIGTERM)
    assert caught.value.exit_code == 143


def test_handlers_are_as_before_afterwards():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with StopSignals():
        pass
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
