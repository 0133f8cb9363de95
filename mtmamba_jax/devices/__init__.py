"""Devices and processes: what runs where, and how fast."""
