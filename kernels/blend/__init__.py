"""The CTM block's LayerNorm and blend as one kernel per pass; `models.ops.blend` uses them."""
