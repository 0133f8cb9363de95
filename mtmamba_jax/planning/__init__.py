"""Plans runs by compiling for accelerators that this machine does not have."""
