"""The axis legend: one letter, one meaning, in every docstring, einsum and shape comment.

| letter | axis                                                      |
|--------|-----------------------------------------------------------|
| t      | task: weights and features of all tasks are stacked on it |
| b      | batch                                                     |
| h, w   | height and width of a map; l = h*w                        |
| c      | channels of a feature map                                 |
| d      | inner channels of a Mamba block: expansion * c            |
| k      | scan directions                                           |
| n      | state size of the recurrence                              |
| r      | rank of the step-size projection                          |

Arrays are channels-last: [b h w c], or [t b h w c] in the decoder.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import numpy as np

Array = jax.Array | np.ndarray
TaskMaps = Mapping[str, Array]
"""A map [b h w c] for each task name: logits, labels or gradients."""
Batch = Mapping[str, Array]
"""What the pipeline yields; see `mtmamba_jax.data_pipelines.batch`."""
