"""TFDS builders: one folder a dataset, from its published files to records."""
