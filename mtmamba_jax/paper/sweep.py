"""Lists the runs of a sweep: variants of a configuration, each trained with every seed."""

import dataclasses
import fnmatch
from collections.abc import Mapping, Sequence

from mtmamba_jax import config as configuration
from mtmamba_jax.checkpoints.run_directory import RunDirectory
from mtmamba_jax.config import Config
from mtmamba_jax.messages import nearest


@dataclasses.dataclass(frozen=True)
class Job:
    """A run of a sweep.

    Attributes:
      config: NAME:VARIANT of the configuration.
      overrides: Text of each overridden config key, including the seed.
      workdir: The run's work directory.
    """

    config: str
    overrides: Mapping[str, str]
    workdir: str

    def load(self) -> Config:
        """Returns the run's configuration; raises ValueError if an override is invalid."""
        return configuration.load(self.config, self.overrides)

    def arguments(self) -> list[str]:
        """Returns the command line that trains the run, beginning with the command's name."""
        keys = [f"--config.{key}={text}" for key, text in self.overrides.items()]
        return ["train", f"--config={self.config}", *keys, f"--workdir={self.workdir}"]

    def is_done(self) -> bool:
        """Whether the work directory holds this run, finished.

        Raises:
          ValueError: If it holds a finished run of another configuration.
        """
        directory, wanted = RunDirectory(self.workdir), self.load()
        if not directory.config_file.exists() or not directory.is_finished(wanted.train.steps):
            return False  # training refuses an unfinished run of another configuration
        saved = directory.read_config()
        # Training saves the actual number of examples.
        wanted = wanted.replace(data={"train_examples": saved.data.train_examples})
        different = configuration.differences(saved, wanted)
        if different:
            raise ValueError(
                f"{directory} holds a finished run of another configuration: "
                f"{'; '.join(different)}. Choose another --workdir."
            )
        return True


def create_jobs(
    name: str,
    patterns: Sequence[str],
    seeds: Sequence[int],
    workdir: str,
    overrides: Mapping[str, str],
) -> list[Job]:
    """Returns the runs of a sweep: every row with the first seed, then with the next.

    Args:
      name: Name of the configuration, without a variant.
      patterns: Names of variants, in which "*" matches any text; empty selects all variants.
      seeds: Seeds to train each variant with.
      workdir: Folder of the runs' work directories.
      overrides: Text of each config key that is overridden in all runs.

    Raises:
      ValueError: If the configuration has no such variants or an override is invalid.
    """
    name, variant = configuration.split_name(name)
    rows = [each for each in configuration.variants(name) if each]
    if variant or not rows:
        raise ValueError(
            "sweep trains the variants of --config=NAME, such as ablations. "
            + (f"Use --config={name} --rows={variant}." if variant else f"{name!r} has none.")
        )
    if "seed" in overrides:
        raise ValueError("sweep takes the seeds of its runs as --seeds=0,1, not as --config.seed.")
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(row, pattern) for row in rows):
            raise ValueError(
                f"--rows: {name} has no row {pattern!r}.{nearest(pattern, rows)} "
                f"Valid: {', '.join(rows)}."
            )
    chosen = [row for row in rows if any(fnmatch.fnmatchcase(row, p) for p in patterns or ["*"])]
    jobs = [
        Job(f"{name}:{row}", {"seed": str(seed), **overrides}, f"{workdir}/{row}_seed{seed}")
        for seed in seeds
        for row in chosen
    ]
    for job in jobs:
        job.load()  # reports invalid overrides before the first run is trained
    return jobs
