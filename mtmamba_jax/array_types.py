"""Legend of axis letters, used in every shape and einsum, and types of arrays.

| letter | axis                                                      |
|--------|-----------------------------------------------------------|
| t      | task: features and weights of all tasks are stacked on it |
| b      | batch                                                     |
| h, w   | height and width of a map; l = h*w                        |
| c      | channels of a feature map                                 |
| d      | inner channels of a Mamba block: expansion * c            |
| k      | scan directions                                           |
| n      | state size of the recurrence                              |
| r      | rank of the step-size projection                          |

Arrays are channels-last: [b h w c], or [t b h w c] in the decoder.
"""

from collections.abc import Mapping

import jax
import numpy as np
from jaxtyping import Float

Array = jax.Array | np.ndarray
Features = Float[jax.Array, "b h w c"]
"""A feature map."""
TaskFeatures = Float[jax.Array, "t b h w c"]
"""A feature map for each task."""
TaskMaps = Mapping[str, Array]
"""Logits, labels or gradients [b h w c] by task name."""
Batch = Mapping[str, Array]
"""Images, labels and mask of one batch; see `mtmamba_jax.data_pipelines.batch`."""
