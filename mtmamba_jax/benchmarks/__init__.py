"""What the command benchmark measures."""
