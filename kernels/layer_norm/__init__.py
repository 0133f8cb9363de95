"""LayerNorm as one kernel per pass; `models.ops.layer_norm` is the operation."""
