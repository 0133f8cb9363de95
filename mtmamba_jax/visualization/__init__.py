"""Draws task maps, panels of many maps and diagrams of scores."""
