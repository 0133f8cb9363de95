"""Task maps as images, panels of many maps, and diagrams of scores."""
