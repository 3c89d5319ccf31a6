"""Signals that stop a process, and output that nobody reads any more."""

from __future__ import annotations

import contextlib
import io
import os
import signal

import pytest

from pw.io.progress import ignore_closed_stream
from pw.parallel.signals import Stopped, hold_stop_signals, interruptible, print_stop


class TestAProcessThatIsToldToStop:
    def test_is_told_once_but_by_ctrl_c_each_time(self) -> None:
        def work() -> None:
            try:
                signal.raise_signal(signal.SIGHUP)
            finally:
                signal.raise_signal(signal.SIGHUP)  # the shell, after the terminal
                with contextlib.suppress(ValueError):
                    signal.raise_signal(signal.SIGTERM)
                    raise ValueError
                for _ in range(2):
                    with pytest.raises(KeyboardInterrupt):
                        signal.raise_signal(signal.SIGINT)

        handler = signal.getsignal(signal.SIGHUP)
        with interruptible(), pytest.raises(Stopped) as stop:
            work()
        assert stop.value.code == 129
        assert signal.getsignal(signal.SIGHUP) == handler

    def test_is_told_again_when_the_first_time_was_lost(self) -> None:
        """As in a finaliser, whose exceptions are only printed."""
        with interruptible():
            for number in (signal.SIGTERM, signal.SIGTERM):
                with pytest.raises(Stopped):
                    signal.raise_signal(number)

    def test_keeps_to_what_nohup_said(self) -> None:
        handler = signal.signal(signal.SIGHUP, signal.SIG_IGN)
        try:
            with interruptible():
                signal.raise_signal(signal.SIGHUP)
        finally:
            assert signal.signal(signal.SIGHUP, handler) == signal.SIG_IGN

    def test_says_the_rest_to_nobody_when_its_reader_is_gone(self) -> None:
        reader, writer = os.pipe()
        os.close(reader)
        with io.TextIOWrapper(os.fdopen(writer, "wb")) as stream:  # what is left is written when it is closed
            for _ in range(2):
                with ignore_closed_stream(stream):
                    print("update 10", file=stream, flush=True)


def work_in_one_piece(number: int, error: type[Exception] | None, done: list[int]) -> None:
    with hold_stop_signals():
        signal.raise_signal(number)
        done.append(number)
        if error is not None:
            raise error


class TestASignalThatIsHeldBack:
    @pytest.mark.parametrize("error", [None, ValueError])
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGQUIT, signal.SIGINT])
    def test_comes_at_the_end_whatever_became_of_the_work(
        self, number: signal.Signals, error: type[Exception] | None
    ) -> None:
        handler = signal.signal(number, signal.SIG_DFL)  # a shell may have started the tests in the background
        done: list[int] = []
        try:
            with interruptible(), pytest.raises(KeyboardInterrupt if number == signal.SIGINT else Stopped):
                work_in_one_piece(number, error, done)
        finally:
            signal.signal(number, handler)
        assert done == [number]

    def test_of_which_there_is_none_changes_nothing(self) -> None:
        with interruptible(), hold_stop_signals():
            pass


@pytest.mark.parametrize(("stop", "status"), [(Stopped(signal.SIGQUIT), 131), (KeyboardInterrupt(), 130)])
def test_a_stop_is_one_line(stop: Stopped | KeyboardInterrupt, status: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert print_stop(stop, "all is kept") == status
    assert capsys.readouterr().err == f"stopped by {'SIGINT' if status == 130 else 'SIGQUIT'}; all is kept\n"
