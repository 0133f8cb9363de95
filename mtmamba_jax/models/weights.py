"""A model's weights: learned parameters, and the statistics that BatchNorm gathers."""

from flax import nnx

WEIGHTS = nnx.Any(nnx.Param, nnx.BatchStat)
"""The variables of a model that checkpoints hold."""


def split_model(model: nnx.Module) -> tuple[nnx.GraphDef, dict]:
    """Returns a model's structure and its weights, a nested dict."""
    graph, weights = nnx.split(model, WEIGHTS)
    return graph, nnx.to_pure_dict(weights)


def split_learned(graph: nnx.GraphDef, weights: dict) -> tuple[nnx.GraphDef, dict, dict]:
    """Splits weights for `nnx.merge` into a structure, learned parameters and statistics.

    Parameters and statistics are nested dicts; weights that are learned are the ones to
    differentiate by.
    """
    graph, learned, statistics = nnx.split(nnx.merge(graph, weights), nnx.Param, nnx.BatchStat)
    return graph, nnx.to_pure_dict(learned), nnx.to_pure_dict(statistics)
