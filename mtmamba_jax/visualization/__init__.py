"""Maps as pictures, and diagrams."""
