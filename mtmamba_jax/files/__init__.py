"""Reads, writes and locks files in local folders and in buckets."""
