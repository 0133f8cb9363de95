"""What a synthetic scene is made of.

`furniture` and `people` build things from primitives, `layout` puts them into a room and a camera in
front of them, `geometry` casts rays and `shading` turns hits into an image.

The world is in metres: x to the right, y away from the camera's wall, z up, the room's corner at 0.
The camera's own frame is the labels': x right, y up, z towards the viewer.
"""
