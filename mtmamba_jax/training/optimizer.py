"""AdamW with the polynomial schedule of the published recipe."""

from __future__ import annotations

import jax
import optax
from ml_collections import ConfigDict


def learning_rate(settings: ConfigDict, steps: int) -> optax.Schedule:
    """Returns the schedule: rate * (1 - step/steps)^power, after a linear warm-up if there is one.

    Args:
      settings: `config.optimizer`.
      steps: of the whole run.
    """
    warmup = settings.warmup_steps
    decay = optax.polynomial_schedule(
        settings.learning_rate, 0.0, settings.power, max(1, steps - warmup)
    )
    if not warmup:
        return decay
    rise = optax.linear_schedule(settings.learning_rate / warmup, settings.learning_rate, warmup)
    return optax.join_schedules([rise, decay], [warmup])


def create_optimizer(settings: ConfigDict, steps: int) -> optax.GradientTransformation:
    """Returns AdamW on all parameters alike (weight decay too: one parameter group)."""
    return optax.adamw(
        learning_rate(settings, steps),
        b1=settings.beta_1,
        b2=settings.beta_2,
        eps=settings.epsilon,
        weight_decay=settings.weight_decay,
    )


def updates_made(state: optax.OptState) -> jax.Array:
    """Returns how many updates an optimizer's state has seen, an int32 scalar."""
    moments = state[0]  # the first of the transformations that AdamW is made of
    return moments.count
