"""Depthwise 3x3 convolution with SiLU as one kernel per pass, for `models.ops.convolve_silu`."""
