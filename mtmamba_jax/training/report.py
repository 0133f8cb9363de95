"""Where a run's numbers go: the terminal, TensorBoard and a JSON line each."""

from __future__ import annotations

import io
import json
import pathlib
import sys
from collections.abc import Mapping
from typing import TextIO

import numpy as np
import tqdm
from tensorboardX import SummaryWriter

METRICS_FILE = "metrics.jsonl"


class Report:
    """Writes `metrics.jsonl` and `tensorboard/` under a work directory and shows progress.

    Lines of steps after `start_step`, left by a run that was killed after its last checkpoint, are
    dropped: the resumed run writes them again. So are all lines where a run starts anew.

    Args:
      workdir: of the run.
      start_step: step that the run starts or goes on from.
      steps: of the whole run.
      writes: False in all but the first of several processes, which show and write nothing.
    """

    def __init__(self, workdir: pathlib.Path, *, start_step: int, steps: int, writes: bool = True):
        self.start_step = start_step
        self._file = _open_lines(workdir, start_step) if writes else io.StringIO()
        self._board = SummaryWriter(
            str(workdir / "tensorboard"), purge_step=start_step + 1, write_to_disk=writes
        )
        # A file or pipe gets a line a log step instead of a bar that overwrites itself.
        self._live = writes and sys.stderr.isatty()
        self._bar = tqdm.tqdm(
            total=steps,
            initial=start_step,
            unit="step",
            dynamic_ncols=True,
            smoothing=0.1,
            disable=not self._live,
        )

    def numbers(self, step: int, kind: str, values: Mapping[str, float]) -> None:
        """Writes numbers of a step; `kind` is "constant", "train" or "test"."""
        self._file.write(json.dumps({"step": step, "kind": kind, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._board.add_scalar(f"{kind}/{name}", value, step)
        if kind == "train" and not self._live:
            print(
                f"step {step}/{self._bar.total}: loss {values['loss']:.3f}, "
                f"{values['seconds_per_step']:.2f} s a step, "
                f"{100 * values['input_wait']:.0f} % waiting for input",
                flush=True,
            )

    def picture(self, step: int, name: str, picture: np.ndarray) -> None:
        """Writes a uint8 RGB picture to TensorBoard."""
        self._board.add_image(name, picture, step, dataformats="HWC")

    def advance(self, loss: float | None) -> None:
        """Moves the progress bar by one step and shows the loss, if there is a new one."""
        if loss is not None:
            self._bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
        self._bar.update()

    def say(self, text: str) -> None:
        """Prints a line above the progress bar."""
        self._bar.write(text)
        sys.stdout.flush()

    def close(self) -> None:
        """Ends the progress bar and closes the files."""
        self._bar.close()
        self._file.close()
        self._board.close()


def _open_lines(workdir: pathlib.Path, start_step: int) -> TextIO:
    """Returns the file of lines, with those up to a step."""
    path = workdir / METRICS_FILE
    lines = read_metrics(workdir)
    kept = [json.dumps(line) + "\n" for line in lines if line["step"] <= start_step > 0]
    fresh = path.with_suffix(".tmp")
    fresh.write_text("".join(kept))
    fresh.replace(path)  # whole or not at all, should the process be killed here
    return path.open("a")


def read_metrics(workdir: pathlib.Path) -> list[dict]:
    """Returns the lines of `metrics.jsonl`; a line torn by a kill is left out."""
    path = workdir / METRICS_FILE
    lines = []
    for text in path.read_text().splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            continue
    return lines
