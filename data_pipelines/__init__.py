"""Turns raw examples into batches: sources, transforms, the grain pipeline, the batch contract."""
