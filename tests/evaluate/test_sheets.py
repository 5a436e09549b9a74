import numpy as np
import pytest
import torch
from PIL import Image, ImageFont

from semhitok.errors import DataError
from semhitok.evaluate.sheets import (
    FONT_SIZE,
    HEADING_SIZE,
    LINE_HEIGHT,
    MARGIN,
    MAX_CAPTION_LINES,
    _wrap,
    contact_sheet,
    token_map,
    with_headings,
)

RED = Image.new("RGB", (10, 10), "red")


def test_sheet_size_and_places():
    sheet = contact_sheet([[(RED, "original"), (RED, "again")], [(RED, "")]], cell=40)
    assert sheet.width == 2 * 40 + 3 * MARGIN
    lines = 2  # "original" is wider than 40 px
    assert sheet.height == MARGIN + (40 + lines * LINE_HEIGHT + MARGIN) + (40 + MARGIN)
    pixels = np.asarray(sheet)
    second_row = MARGIN + 40 + lines * LINE_HEIGHT + MARGIN
    for top, left in ((MARGIN, MARGIN), (MARGIN, 2 * MARGIN + 40), (second_row, MARGIN)):
        assert (pixels[top : top + 40, left : left + 40] == (255, 0, 0)).all()
        assert (pixels[top - 1, left : left + 40] == 255).all()
    caption = pixels[MARGIN + 40 : second_row - MARGIN, MARGIN : MARGIN + 40]
    assert caption.min() < 64  # ink


def test_small_pictures_grow_by_whole_factors_and_large_ones_shrink():
    stripes = Image.fromarray(np.tile(np.array([[[0] * 3, [255] * 3]], np.uint8), (15, 8, 1)))
    values = np.unique(np.asarray(contact_sheet([[(stripes, "")]], cell=40)))
    assert set(values.tolist()) == {0, 255}  # 16 x 15 px, doubled: no in-between greys
    large = contact_sheet([[(Image.new("RGB", (100, 50), "blue"), "")]], cell=40)
    assert (np.asarray(large) == (0, 0, 255)).all(axis=-1).sum() == 40 * 20


def test_captions_wrap_and_end_in_dots():
    font = ImageFont.load_default(FONT_SIZE)
    assert _wrap("one two", 200, font) == ["one two"]
    assert _wrap("", 200, font) == []
    assert _wrap("caf\u00e9 \u2014 21 \u00b1 1 dB \u732b", 200, font) == ["cafe - 21 \u00b1 1 dB ?"]
    for text in ("a caption of many words " * 9, "photograph_without_any_space_" * 9 + ".jpg"):
        lines = _wrap(text, 120, font)
        assert len(lines) == MAX_CAPTION_LINES and lines[-1].endswith("...")
        assert all(font.getlength(line) <= 120 for line in lines)


def test_no_pictures():
    with pytest.raises(DataError, match="no pictures for a contact sheet"):
        contact_sheet([[], []])


def test_headings_stand_above_their_sheets():
    sheets = {"quality": RED, "worst": Image.new("RGB", (200, 30), "blue")}
    pixels = np.asarray(with_headings(sheets))
    strip = HEADING_SIZE + MARGIN
    assert pixels.shape == (2 * strip + 10 + 30, 200, 3)
    assert (pixels[strip : strip + 10, :10] == (255, 0, 0)).all()
    assert (pixels[-30:] == (0, 0, 255)).all()
    for top in (0, strip + 10):
        heading = pixels[top : top + strip]
        assert heading.min() < 64 and heading[[0, -1]].min() == 255  # ink, and none cut off


def test_token_map_colours_are_stable_and_distinct():
    codes = torch.arange(64).view(8, 8)
    image = token_map(codes, None, cell=4)
    assert image.size == (32, 32)
    colours = np.asarray(image)[::4, ::4].reshape(64, 3).astype(int)
    gaps = np.abs(colours[:, None] - colours[None]).sum(axis=-1)
    assert gaps[~np.eye(64, dtype=bool)].min() > 10
    assert np.abs(np.diff(colours, axis=0)).sum(axis=1).min() > 100  # neighbours look far apart
    alone = token_map(codes[3:4, 3:4], None, cell=1)
    assert alone.getpixel((0, 0)) == image.getpixel((12, 12))


def test_token_map_pixel_codes_change_lightness_alone():
    import colorsys

    semantic, pixel = torch.full((1, 16), 7), torch.arange(16).view(1, 16)
    colours = np.asarray(token_map(semantic, pixel, cell=1))[0] / 255
    hues, shades, _ = zip(*(colorsys.rgb_to_hls(*c) for c in colours), strict=True)
    assert max(hues) - min(hues) < 0.02
    assert len({round(shade, 2) for shade in shades}) == 16
    assert min(shades) >= 0.34 and max(shades) <= 0.81
