"""Creates the optimizer: AdamW with the published recipe's polynomial learning-rate schedule."""

from typing import Any

import jax
import optax

from mtmamba_jax.config.settings import OptimizerSettings


def learning_rate(settings: OptimizerSettings, steps: int) -> optax.Schedule:
    """Returns the schedule: rate * (1 - step/steps)^power, after a linear warm-up if configured."""
    rate, warmup = settings.learning_rate, settings.warmup_steps
    decay = optax.polynomial_schedule(rate, 0.0, settings.power, max(1, steps - warmup))
    if not warmup:
        return decay
    rise = optax.linear_schedule(rate / warmup, rate, warmup)
    return optax.join_schedules([rise, decay], [warmup])


def create_optimizer(settings: OptimizerSettings, steps: int) -> optax.GradientTransformation:
    """Returns AdamW with one parameter group: weight decay applies to all parameters."""
    return optax.adamw(
        learning_rate(settings, steps),
        b1=settings.beta_1,
        b2=settings.beta_2,
        eps=settings.epsilon,
        weight_decay=settings.weight_decay,
    )


def updates_made(state: optax.OptState) -> jax.Array:
    """Returns the number of updates that AdamW's state has seen, an int32 scalar."""
    chained: Any = state
    return chained[0].count  # of scale_by_adam, the first of the chained transformations
