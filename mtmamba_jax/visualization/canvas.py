"""Diagrams: lines, areas and text, drawn larger than they are shown, so that edges are smooth."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

INK = (40, 40, 40)

Place = tuple[float, float]
"""x and y in pixels of the picture, from its top left."""

Colour = tuple[int, int, int]


class Canvas:
    """A white picture to draw on.

    Args:
      width: in pixels, as all that follows.
      height: likewise.
      detail: it is drawn this many times as large.
    """

    def __init__(self, width: int, height: int, *, detail: int = 4):
        self._size, self._detail = (width, height), detail
        self._image = Image.new("RGB", (detail * width, detail * height), "white")
        self._draw = ImageDraw.Draw(self._image)

    def line(self, places: Sequence[Place], colour: Colour, width: int = 1) -> None:
        """Draws a line through places."""
        points = [self._enlarge(place) for place in places]
        self._draw.line(points, fill=colour, width=width * self._detail, joint="curve")

    def area(self, corner: Place, opposite: Place, colour: Colour) -> None:
        """Fills a rectangle between two corners, the upper left one first."""
        (left, top), (right, bottom) = self._enlarge(corner), self._enlarge(opposite)
        self._draw.rectangle((left, top, right - 1, bottom - 1), fill=colour)

    def frame(self, corner: Place, opposite: Place, colour: Colour) -> None:
        """Draws the edges of a rectangle between two corners, the upper left one first."""
        box = (*self._enlarge(corner), *self._enlarge(opposite))
        self._draw.rectangle(box, outline=colour, width=self._detail)

    def dot(self, place: Place, radius: float, colour: Colour) -> None:
        """Draws a filled circle."""
        (x, y), radius = self._enlarge(place), radius * self._detail
        self._draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)

    def text(self, text: str, place: Place, anchor: str, size: int, colour: Colour = INK) -> None:
        """Writes a line of text; `anchor` is Pillow's: which point of it is at the place."""
        font = self._font(size)
        self._draw.text(self._enlarge(place), text, fill=colour, font=font, anchor=anchor)

    def upward_text(self, text: str, place: Place, size: int, colour: Colour = INK) -> None:
        """Writes a line of text from below to above: it starts at the place, x its middle."""
        font = self._font(size)
        left, top, right, bottom = font.getbbox(text, anchor="lm")
        written = Image.new("L", (right - left, bottom - top), 0)
        ImageDraw.Draw(written).text((-left, -top), text, fill=255, font=font, anchor="lm")
        turned = written.transpose(Image.Transpose.ROTATE_90)
        x, y = self._enlarge(place)
        self._image.paste(colour, (round(x + top), round(y - right)), turned)

    def finish(self) -> Image.Image:
        """Returns the picture in its own size."""
        return self._image.resize(self._size, Image.Resampling.LANCZOS)

    def _enlarge(self, place: Place) -> Place:
        return self._detail * place[0], self._detail * place[1]

    def _font(self, size: int) -> ImageFont.FreeTypeFont:
        return ImageFont.load_default(self._detail * size)


def text_width(text: str, size: int) -> float:
    """Returns how wide a line of text is, in pixels."""
    return ImageFont.load_default(size).getlength(text)
