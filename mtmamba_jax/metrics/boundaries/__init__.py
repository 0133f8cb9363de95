"""The boundary benchmark: scores predicted contours by matching them to the ground truth (odsF).

Predicted contours are thresholded at 101 levels, thinned, and matched one to one with the pixels of
the true contour within a maximum distance; counts are summed over the test set (Martin, Fowlkes,
Malik, "Learning to detect natural image boundaries", PAMI 2004; Arbelaez et al., "Contour detection
and hierarchical image segmentation", PAMI 2011). As usual in multi-task learning (SEISM), soft
predictions first go through non-maximum suppression.

`contours` prepares maps, `matching` matches them, `counts` counts one image, `scores` scores a test
set and `folders` scores saved predictions (the command `boundaries`).
`mtmamba_jax.evaluation.boundaries` scores a model (the command `eval`).
"""
