"""Pictures for people: contact sheets, and token grids as colours."""

from __future__ import annotations

import colorsys
import unicodedata
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Int64
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from semhitok.errors import DataError

FONT_SIZE = 15
LINE_HEIGHT = 20
HEADING_SIZE = 22
MARGIN = 12
MAX_CAPTION_LINES = 3

_PAPER, _INK = (255, 255, 255), (32, 32, 32)
_GOLDEN, _PLASTIC = 0.6180339887498949, 0.7548776662466927  # steps that never fall on each other
_DASHES = str.maketrans("–—", "--")
_Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def contact_sheet(
    rows: Sequence[Sequence[tuple[Image.Image, str]]], *, cell: int = 256
) -> Image.Image:
    """Rows of (picture, caption) on white, each picture as large as `cell` allows.

    Pictures keep their shape. A small one is enlarged by a whole factor without smoothing, since
    its pixels are what one wants to see; one larger than `cell` is reduced with Lanczos. Captions
    wrap below their picture and end in "..." where MAX_CAPTION_LINES do not hold them.

    Args:
        cell: width of a column, and largest height of a picture, in pixels.

    Raises:
        DataError: no pictures.
    """
    if not any(rows):
        raise DataError("no pictures for a contact sheet; at least one is needed")
    strips = [_strip(row, cell) for row in rows if row]
    width = max(strip.width for strip in strips)
    sheet = Image.new("RGB", (width, sum(s.height for s in strips) + MARGIN), _PAPER)
    top = MARGIN
    for strip in strips:
        sheet.paste(strip, (0, top))
        top += strip.height
    return sheet


def with_headings(sheets: Mapping[str, Image.Image]) -> Image.Image:
    """Sheets below one another, each under the heading that is its key."""
    font = ImageFont.load_default(HEADING_SIZE)
    strip = HEADING_SIZE + MARGIN
    width = max(sheet.width for sheet in sheets.values())
    whole = Image.new("RGB", (width, sum(s.height + strip for s in sheets.values())), _PAPER)
    draw, top = ImageDraw.Draw(whole), 0
    for heading, sheet in sheets.items():
        baseline = top + strip - MARGIN // 2
        draw.text((MARGIN, baseline), _drawable(heading), fill=_INK, font=font, anchor="ls")
        whole.paste(sheet, (0, top + strip))
        top += strip + sheet.height
    return whole


def token_map(
    semantic: Int64[Tensor, "h w"], pixel: Int64[Tensor, "h w"] | None, cell: int
) -> Image.Image:
    """The grid of codes as squares of `cell` px.

    A semantic code has one hue and saturation in every picture and model: golden-ratio steps
    around the circle, so that near codes look far apart. The pixel code sets the lightness in the
    same manner; None gives all the same. Hundreds of codes cannot all look different: equal
    codes look equal, and neighbours that look different are.
    """
    shades = np.full(semantic.shape, 0.55) if pixel is None else _step(pixel, _GOLDEN, 0.35, 0.8)
    hues, saturations = _step(semantic, _GOLDEN, 0.0, 1.0), _step(semantic, _PLASTIC, 0.45, 0.95)
    to_rgb = np.vectorize(colorsys.hls_to_rgb, otypes=[float] * 3)
    colours = np.stack(to_rgb(hues, shades, saturations), axis=-1)
    image = Image.fromarray(np.rint(colours * 255).astype(np.uint8))
    return image.resize((image.width * cell, image.height * cell), Image.Resampling.NEAREST)


def _step(codes: Tensor, ratio: float, low: float, high: float) -> np.ndarray:
    return low + (high - low) * ((codes.cpu().numpy() + 0.5) * ratio % 1.0)


def _strip(row: Sequence[tuple[Image.Image, str]], cell: int) -> Image.Image:
    """One row: pictures on a common baseline, captions below."""
    font = ImageFont.load_default(FONT_SIZE)
    pictures = [_fit(image, cell) for image, _ in row]
    captions = [_wrap(caption, cell, font) for _, caption in row]
    baseline = max(picture.height for picture in pictures)
    height = baseline + LINE_HEIGHT * max(map(len, captions)) + MARGIN
    strip = Image.new("RGB", (MARGIN + len(row) * (cell + MARGIN), height), _PAPER)
    draw = ImageDraw.Draw(strip)
    for column, (picture, lines) in enumerate(zip(pictures, captions, strict=True)):
        left = MARGIN + column * (cell + MARGIN)
        strip.paste(picture, (left, baseline - picture.height))
        for number, line in enumerate(lines):
            draw.text((left, baseline + 2 + number * LINE_HEIGHT), line, fill=_INK, font=font)
    return strip


def _fit(image: Image.Image, cell: int) -> Image.Image:
    image, longest = image.convert("RGB"), max(image.size)
    if longest <= cell:
        factor = cell // longest
        size = (image.width * factor, image.height * factor)
        return image.resize(size, Image.Resampling.NEAREST)
    width, height = (max(1, round(side * cell / longest)) for side in image.size)
    return image.resize((width, height), Image.Resampling.LANCZOS)


def _wrap(text: str, width: int, font: _Font) -> list[str]:
    """Lines no wider than `width`; a word that is (a file name, say) breaks where it must."""
    lines: list[str] = []
    line = ""
    for word in _drawable(text).split():
        if line and font.getlength(f"{line} {word}") <= width:
            line = f"{line} {word}"
            continue
        if line:
            lines.append(line)
        *whole, line = _break(word, width, font)
        lines += whole
    lines += [line] if line else []
    if len(lines) <= MAX_CAPTION_LINES:
        return lines
    last = lines[MAX_CAPTION_LINES - 1]
    while last and font.getlength(f"{last}...") > width:
        last = last[:-1]
    return [*lines[: MAX_CAPTION_LINES - 1], f"{last}..."]


def _drawable(text: str) -> str:
    """The text in the letters that Pillow's font has: accents dropped, others as question marks."""
    letters = unicodedata.normalize("NFKD", text.translate(_DASHES))
    kept = (c for c in letters if not unicodedata.combining(c))
    return "".join(c if c.isascii() or c in "±·" else "?" for c in kept)


def _break(word: str, width: int, font: _Font) -> list[str]:
    pieces = [""]
    for letter in word:
        if pieces[-1] and font.getlength(pieces[-1] + letter) > width:
            pieces.append("")
        pieces[-1] += letter
    return pieces
