"""What a synthetic scene is made of.

`furniture`, `objects` and `people` build pieces from primitives; `layout` puts them into a room of
`rooms`, with a camera before them; `geometry` casts rays; `shading` turns the hits into an image,
`labels` into labels.

The world is in metres: x to the right, y away from the camera's wall, z up, the room's corner at 0.
The camera's own frame is the labels': x right, y up, z towards the viewer.
"""
