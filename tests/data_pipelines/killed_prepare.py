"""Prepares a dataset in a process of its own, for tests that kill it: NAME SOURCE DATA_DIR."""

import sys

from tests.data_pipelines.dummy_trees import prepare

if __name__ == "__main__":
    prepare(*sys.argv[1:], num_workers=2)
