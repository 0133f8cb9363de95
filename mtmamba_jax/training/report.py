"""Where a run's numbers go: the terminal, TensorBoard and a JSON line each."""

from __future__ import annotations

import contextlib
import io
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TextIO

import numpy as np
import tqdm
from etils import epath
from tensorboardX import SummaryWriter

from mtmamba_jax.checkpoints.workdir import WorkDirectory
from mtmamba_jax.files.paths import to_json, write_atomically
from mtmamba_jax.messages import short

METRICS_FILE = "metrics.jsonl"
_QUEUE = 1000  # events on their way to TensorBoard's file: more than one call writes


class Report:
    """Writes `metrics.jsonl` and `tensorboard/` under a work directory and shows progress.

    Lines of steps after `start_step`, left by a run that was killed after its last checkpoint, are
    dropped: the resumed run writes them again. So are all lines where a run starts anew.

    Args:
      workdir: of the run.
      start_step: step that the run starts or goes on from.
      steps: of the whole run.
      writes: False in all but the first of several processes, which show and write nothing.

    Attributes:
      has_scores: whether the scores of `start_step` are written already.
    """

    def __init__(self, workdir: WorkDirectory, *, start_step: int, steps: int, writes: bool = True):
        self.start_step, self.workdir, self.has_scores = start_step, workdir, False
        self._file: TextIO = io.StringIO()
        with self._naming_errors():
            if writes:
                lines = _lines_up_to(start_step, workdir)
                self._file = _write_lines(lines, workdir)
                self.has_scores = (start_step, "test") in [(x["step"], x["kind"]) for x in lines]
            self._board = SummaryWriter(
                str(workdir.local / "tensorboard"),
                max_queue=_QUEUE,
                purge_step=start_step + 1,
                write_to_disk=writes,
            )
        self._events = self._board.file_writer.event_writer if writes else None
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
        """Writes numbers of a step; `kind` is "constant", "train" or "test".

        What is not finite is null in the file, as JSON has no such numbers.
        """
        line = {"step": step, "kind": kind, **values}
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        with self._naming_errors():
            self._file.write(to_json(line) + "\n")
            self._file.flush()
            if not self._board_lives():  # its queue would fill up, and wait for ever
                raise OSError("TensorBoard's events could not be written")
        for name, value in finite.items():
            self._board.add_scalar(f"{kind}/{name}", value, step)
        if kind == "train" and not self._live:
            utilisation = values.get("flops_utilisation")
            print(
                f"step {step}/{self._bar.total}: loss {values['loss']:.3f}, "
                f"{values['seconds_per_step']:.2f} s a step, "
                f"{short(values['images_per_second'])} images/s, "
                f"{100 * values['input_wait']:.0f} % waiting for input"
                + (f", {100 * utilisation:.1f} % of peak FLOP/s" if utilisation else ""),
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

    def flush(self) -> None:
        """Has what was given in the files, which a run in a bucket copies there.

        TensorBoard's thread may be some events behind; they come with the next copy.
        """
        with self._naming_errors():
            self._board.flush()

    def close(self) -> None:
        """Ends the progress bar and closes the files."""
        self._bar.close()
        with self._naming_errors(), contextlib.ExitStack() as stack:
            stack.callback(self._close_board)
            self._file.close()

    def _close_board(self) -> None:
        if not self._board_lives():
            # Nobody reads its queue any more: this process would wait for ever for the thread that
            # fills it.
            self._events._event_queue.cancel_join_thread()
            return
        self._board.close()

    def _board_lives(self) -> bool:
        """Says whether TensorBoard's files are still written: their thread ends when it cannot."""
        return self._events is None or self._events._worker.is_alive()

    @contextlib.contextmanager
    def _naming_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OSError(
                f"{self.workdir.path} could not be written ({error}). Earlier checkpoints are as "
                "they were; the same command goes on from the last once this is mended."
            ) from error


def _lines_up_to(step: int, workdir: WorkDirectory) -> list[dict]:
    return [line for line in read_metrics(workdir.path) if line["step"] <= step > 0]


def _write_lines(lines: Sequence[dict], workdir: WorkDirectory) -> TextIO:
    """Returns the file of lines, to write more."""
    path = workdir.local / METRICS_FILE
    write_atomically(path, "".join(to_json(line) + "\n" for line in lines).encode())
    return path.open("a")


def read_metrics(workdir: epath.PathLike) -> list[dict]:
    """Returns the lines of `metrics.jsonl`; a line torn by a kill is left out."""
    path = epath.Path(workdir) / METRICS_FILE
    lines = []
    for text in path.read_text().splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            continue
    return lines
