"""What happens beside the Trainer's steps: figures, marks of whole checkpoints, Ctrl-C."""

from __future__ import annotations

import json
import logging
import math
import signal
import threading
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from semhitok.errors import TrainingError
from semhitok.files import write_file

log = logging.getLogger(__name__)

LOGGED = ("loss", "loss/text", "loss/image", "grad_norm", "learning_rate")
WHOLE = "whole"
"""A file in a checkpoint that was written to its end."""


class Record(TrainerCallback):
    """Figures to `metrics.jsonl` and to the log; a loss that is not finite ends the training."""

    def __init__(self, path: Path, stage: str) -> None:
        self.path, self.stage = path, stage

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Drop what a killed run had logged beyond the checkpoint from which it goes on."""
        if state.is_world_process_zero and self.path.exists():
            kept = [line for line in self.path.read_text().splitlines() if self._stays(line, state)]
            text = "".join(line + "\n" for line in kept)
            write_file(self.path, lambda temporary: temporary.write_text(text))

    def _stays(self, line: str, state: TrainerState) -> bool:
        try:
            record = json.loads(line)
        except ValueError:  # a line that the kill cut short
            return False
        return bool(record["stage"] != self.stage or record["step"] <= state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        figures = {name: value for name, value in (logs or {}).items() if name in LOGGED}
        if not figures or not state.is_world_process_zero:
            return
        record = {"stage": self.stage, "step": state.global_step, **figures}
        with open(self.path, "a") as file:
            file.write(json.dumps(record) + "\n")
        told = " ".join(f"{name} {value:.4g}" for name, value in figures.items())
        log.info("%s %d/%d %s", self.stage, state.global_step, state.max_steps, told)
        if not all(map(math.isfinite, figures.values())):
            raise TrainingError(
                f"stage {self.stage}, step {state.global_step}: not finite ({told}); lower the "
                "learning rate, or set dtype=float32"
            )


class Mark(TrainerCallback):
    """Marks a checkpoint when all of it has been written."""

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero:
            assert args.output_dir is not None
            checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            write_file(checkpoint / WHOLE, lambda temporary: temporary.touch())


class Interruption(TrainerCallback):
    """Holds Ctrl-C back until the step that it comes in has ended, and asks for a checkpoint."""

    def __init__(self) -> None:
        self.asked = False
        self._former: Any = None

    def __enter__(self) -> None:
        if threading.current_thread() is threading.main_thread():
            self._former = signal.signal(signal.SIGINT, self._ask)

    def __exit__(self, *error: object) -> None:
        if self._former is not None:
            signal.signal(signal.SIGINT, self._former)

    def _ask(self, *_: object) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.asked:
            control.should_save = control.should_training_stop = True
