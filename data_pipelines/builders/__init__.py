"""TFDS builders that convert published datasets to records, one folder per dataset."""
