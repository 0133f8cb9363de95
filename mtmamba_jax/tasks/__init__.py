"""What a task is: its row in the table, its labels, its loss and its logits as quantities."""
