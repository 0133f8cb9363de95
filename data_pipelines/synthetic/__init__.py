"""Procedural indoor scenes with exact labels, ray-cast on the fly.

`furniture`, `objects` and `people` build pieces from primitives. `arrangement` places them in a
room of `rooms` and sets up the camera. `geometry` casts rays; `shading` turns the hits into an
image and `labels` into labels.

World coordinates are in metres: x to the right, y away from the wall at the camera, z up, with the
origin in a corner of the room. Labels use the camera's frame: x right, y up, z towards the viewer.
"""
