"""From raw examples to batches: sources, transforms, the grain pipeline, the batch contract."""
