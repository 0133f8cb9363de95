"""Devices and processes: sharding, multi-process runs, timing and limits of accelerators."""
