"""Folders, buckets and files."""
