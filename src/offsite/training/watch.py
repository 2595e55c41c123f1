"""Progress of a training run, and how Ctrl-C, SIGTERM or SIGHUP ends it."""

from __future__ import annotations

import signal
from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback


class Watch(TrainerCallback):  # type: ignore[misc]
    """A progress bar on standard error; a first Ctrl-C, SIGTERM or SIGHUP saves before it stops.

    A signal that is ignored, as ``nohup`` has it, stays ignored.
    """

    def __init__(self, text: str, can_save: bool) -> None:
        self.text, self.can_save, self.interrupted = text, can_save, False
        self.bar: Any = None
        self.previous: dict[signal.Signals, Any] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar = tqdm(
            total=state.max_steps, initial=state.global_step, desc=self.text, disable=None
        )
        if self.can_save:
            try:
                for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                    if signal.getsignal(number) is signal.SIG_IGN:
                        continue
                    self.previous[number] = signal.signal(number, self._interrupt)
            except ValueError:  # not in the main thread: Ctrl-C stays what it is
                self.can_save = False

    def _interrupt(self, *args: Any) -> None:
        self.interrupted = True
        self._restore()

    def _restore(self) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar.update(1)
        if self.interrupted:
            control.should_save = control.should_training_stop = True

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if logs and "loss" in logs:
            self.bar.set_postfix(loss=f"{float(logs['loss']):.4f}")

    def close(self) -> None:
        """Put the signal handler and the screen back."""
        if self.bar is not None:
            self.bar.close()
        if self.can_save:
            self._restore()
