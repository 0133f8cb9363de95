"""Reports a run's numbers: on the terminal, to TensorBoard and as JSON lines."""

import contextlib
import io
import json
import math
import pathlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TextIO

import numpy as np
import tqdm
from etils import epath
from jaxtyping import UInt8
from tensorboardX import SummaryWriter

from mtmamba_jax.checkpoints.run_lock import LockedRunDirectory
from mtmamba_jax.files.json_files import to_json
from mtmamba_jax.files.paths import cause, write_atomically
from mtmamba_jax.messages import short

METRICS_FILE = "metrics.jsonl"
_QUEUE = 1000  # events on their way to TensorBoard's file: more than one call writes


class Report:
    """Writes `metrics.jsonl` and `tensorboard/` in a work directory and shows progress.

    Lines of steps after `start_step`, which a run wrote between its last checkpoint and its end,
    are dropped: the resumed run writes them again.

    Args:
      directory: The run's work directory.
      start_step: The step that the run starts or resumes from.
      steps: Number of steps of the whole run.
      writes: False in all but the first of several processes: they show and write nothing.

    Attributes:
      has_scores: Whether the scores of `start_step` are written already.
    """

    def __init__(
        self, directory: LockedRunDirectory, *, start_step: int, steps: int, writes: bool = True
    ):
        self.start_step, self.directory, self.has_scores = start_step, directory, False
        self._file: TextIO = io.StringIO()
        with self._explain_errors():
            if writes:
                earlier = read_metrics(directory) if start_step > 0 else []
                lines = [line for line in earlier if line["step"] <= start_step]
                self._file = _write_lines(lines, directory.local / METRICS_FILE)
                self.has_scores = (start_step, "test") in [(x["step"], x["kind"]) for x in lines]
            self._board = SummaryWriter(
                str(directory.local / "tensorboard"),
                max_queue=_QUEUE,
                purge_step=start_step + 1,
                write_to_disk=writes,
            )
        writer: Any = self._board.file_writer
        self._events: Any = writer.event_writer if writes else None
        # Files and pipes get one line per logged step instead of a progress bar.
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
        """Writes the numbers of a step; `kind` is "constant", "train" or "test".

        Numbers that are not finite become null in the file, since JSON has no such numbers.
        """
        line = {"step": step, "kind": kind, **values}
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        with self._explain_errors():
            self._file.write(to_json(line) + "\n")
            self._file.flush()
            if not self._board_is_alive():  # its queue would fill up and block forever
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

    def image(self, step: int, name: str, image: UInt8[np.ndarray, "h w 3"]) -> None:
        """Writes an RGB image to TensorBoard."""
        self._board.add_image(name, image, step, dataformats="HWC")

    def advance(self, loss: float | None) -> None:
        """Advances the progress bar by one step and shows the loss if there is a new one."""
        if loss is not None:
            self._bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
        self._bar.update()

    def say(self, text: str) -> None:
        """Prints a line above the progress bar."""
        self._bar.write(text)
        sys.stdout.flush()

    def flush(self) -> None:
        """Flushes the files, for a run in a bucket to copy them there.

        TensorBoard's thread may lag some events behind; the next copy has them.
        """
        with self._explain_errors():
            self._board.flush()

    def close(self) -> None:
        """Ends the progress bar and closes the files."""
        self._bar.close()
        with self._explain_errors(), contextlib.ExitStack() as stack:
            stack.callback(self._close_board)
            self._file.close()

    def _close_board(self) -> None:
        try:
            if self._board_is_alive():
                self._board.close()
        finally:
            if self._events and not self._events._closed:
                # Nothing reads its queue any more: joining its feeder thread would block forever.
                self._events._event_queue.cancel_join_thread()
                self._events._closed = True  # as Python exits, it would try to write again

    def _board_is_alive(self) -> bool:
        """Whether the thread that writes TensorBoard's files is alive: it ends when it cannot."""
        return self._events is None or self._events._worker.is_alive()

    @contextlib.contextmanager
    def _explain_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            reason = cause(error).strerror or error
            raise OSError(
                f"{self.directory} could not be written ({reason}). Earlier checkpoints are "
                "intact; the same command resumes from the last one once this is fixed."
            ) from error


def _write_lines(lines: Sequence[dict], path: pathlib.Path) -> TextIO:
    """Writes lines to a file and returns it, open for more."""
    write_atomically(path, "".join(to_json(line) + "\n" for line in lines).encode())
    return path.open("a")


def read_metrics(workdir: epath.PathLike) -> list[dict]:
    """Returns the lines of `metrics.jsonl`, without one that a kill left incomplete."""
    path = epath.Path(workdir) / METRICS_FILE
    lines = []
    for text in path.read_text().splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            continue
    return lines
