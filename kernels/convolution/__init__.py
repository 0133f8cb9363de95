"""Depthwise 3x3 convolution with SiLU as one kernel forward and two backward."""
