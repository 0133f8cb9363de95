"""Cityscapes: its published files, and the TFDS builder that reads them."""
