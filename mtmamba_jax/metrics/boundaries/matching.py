"""The largest one-to-one matching of two contours' pixels within a distance.

The published tool solves an assignment with random outliers (Goldberg and Kennedy's CSA), which
comes close to the largest matching; here its size is exact, and so the same in every run.

One image is matched at 101 thresholds whose contours differ little. `Matcher` keeps the matching of
the threshold before and adds to it: augmenting paths are units of flow in the network of what the
kept matching leaves open, and Dinic's algorithm finds the largest flow. Every pixel of that network
has one way in or one way out, so that it takes O(sqrt(V)) rounds of O(E) (Even, Tarjan, "Network
flow and testing graph connectivity", SIAM J. Comput. 1975), with V pixels of both contours and
E <= V * pixels in a disc of the distance: the bound on the worst case.
`scipy.sparse.csgraph.maximum_bipartite_matching`, from nothing at each threshold, takes minutes for
some; `python -m mtmamba_jax.metrics.boundaries.speed` times both.
"""

from __future__ import annotations

import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import maximum_flow


class Matcher:
    """Matches varying subsets of predicted pixels with the pixels of one true contour.

    Args:
      candidates: bool [h w], every pixel that will ever be predicted.
      truth: bool [h w].
      distance: up to which two pixels match, pixels; the limit counts as near.
    """

    def __init__(self, candidates: np.ndarray, truth: np.ndarray, distance: float):
        self.graph = near_pixels(candidates, truth, distance)
        self._row = np.full(candidates.shape, -1, np.intp)
        self._row[candidates] = np.arange(self.graph.shape[0])
        self._has_near = np.diff(self.graph.indptr) > 0
        self._can_match = np.zeros(self.graph.shape[1], bool)  # true pixels
        self._can_match[self.graph.indices] = True
        self._mate = np.full(self.graph.shape[1], -1, np.intp)  # of true pixels; -1 is none

    def count(self, predicted: np.ndarray) -> int:
        """Returns the size of the largest matching of the pixels of `predicted`, bool [h w]."""
        active = np.zeros(self.graph.shape[0], bool)
        active[self._row[predicted]] = True
        active &= self._has_near
        matched = np.flatnonzero(self._mate >= 0)
        self._mate[matched[~active[self._mate[matched]]]] = -1
        rows = np.flatnonzero(active)
        taken = np.zeros(self.graph.shape[0], bool)
        taken[self._mate[self._mate >= 0]] = True
        free = np.flatnonzero(~taken[rows])
        if free.size and (self._can_match & (self._mate < 0)).any():
            self._augment(rows, free)
        return int(np.count_nonzero(self._mate >= 0))

    def _augment(self, rows: np.ndarray, free: np.ndarray) -> None:
        """Makes the matching the largest one.

        Args:
          rows: candidates that are predicted.
          free: places among `rows` of those without a mate.
        """
        graph = self.graph[rows]
        predicted, true = graph.shape
        # Nodes: the source, predicted pixels, true pixels, the sink. Flow goes from the source to
        # free predicted pixels, on to near true ones, and from there back to their mate or, where
        # they have none, to the sink.
        sink = 1 + predicted + true
        node = np.zeros(self.graph.shape[0], np.int32)
        node[rows] = np.arange(1, predicted + 1)
        onward = np.where(self._mate >= 0, node[self._mate], sink)
        heads = np.concatenate([free + 1, graph.indices + 1 + predicted, onward])
        counts = np.concatenate([[free.size], np.diff(graph.indptr), np.ones(true, int), [0]])
        starts = np.concatenate([[0], np.cumsum(counts)])
        network = sparse.csr_matrix(
            (np.ones(heads.size, np.int32), heads.astype(np.int32), starts.astype(np.int32)),
            shape=(sink + 1, sink + 1),
        )
        flow = maximum_flow(network, 0, sink, method="dinic").flow[1 : predicted + 1].tocoo()
        found = (flow.data > 0) & (flow.col > predicted)
        self._mate[flow.col[found] - 1 - predicted] = rows[flow.row[found]]


def near_pixels(a: np.ndarray, b: np.ndarray, distance: float) -> sparse.csr_matrix:
    """Returns which pixels of two maps lie within a distance of one another.

    Args:
      a: bool [h w].
      b: bool [h w].
      distance: in pixels; the limit counts as near.

    Returns:
      Ones where they do, int8 [pixels of a, pixels of b], each in the order of rows.
    """
    reach = int(distance)
    index = np.full(np.add(b.shape, 2 * reach), -1, np.int32)
    height, width = b.shape
    index[reach : reach + height, reach : reach + width][b] = np.arange(np.count_nonzero(b))
    y, x = np.nonzero(a)
    rows, columns = [], []
    for down in range(-reach, reach + 1):
        for right in range(-reach, reach + 1):
            if down**2 + right**2 <= distance**2:
                column = index[y + down + reach, x + right + reach]
                (row,) = np.nonzero(column >= 0)
                rows.append(row)
                columns.append(column[row])
    rows, columns = np.concatenate(rows), np.concatenate(columns)
    ones = np.ones(rows.size, np.int8)
    return sparse.csr_matrix((ones, (rows, columns)), shape=(y.size, np.count_nonzero(b)))
