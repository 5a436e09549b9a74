"""Pictures with what a tokenizer makes of them, for the eye: a contact sheet and a web page."""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from jaxtyping import Int64
from PIL import Image
from torch import Tensor

from semhitok.evaluate.codecs import CODECS, at_smallest, codec_psnr
from semhitok.evaluate.metrics import psnr, ssim
from semhitok.evaluate.sheets import contact_sheet, token_map
from semhitok.images import to_pil, to_tensor
from semhitok.model import SemHiTok, TokenizerConfig

NAMES = {"JPEG": "JPEG", "WEBP": "WebP", "AVIF": "AVIF"}

COLUMNS = (
    "PSNR dB", "SSIM", "bytes",
    *(f"{NAMES[codec.name]} {what}" for codec in CODECS for what in ("bytes", "dB")),
)  # fmt: skip
"""Heads of `cells`."""


@dataclass(frozen=True)
class Exhibit:
    """One picture as the tokenizer sees it, and what comes back."""

    name: str
    original: Image.Image
    reconstruction: Image.Image
    semantics: Image.Image
    """Painted by the semantic codes alone."""
    tokens: Image.Image
    """The grid of codes as colours."""
    ids: Int64[Tensor, "h w"]
    figures: dict[str, float]
    """`psnr_db`, `ssim`, `bytes`; and `bytes` and `psnr_db` of each codec at its smallest, as
    `JPEG.bytes` and so on."""


def exhibit(tok: SemHiTok, picture: Image.Image, name: str) -> Exhibit:
    """The picture at the model's size, encoded, decoded and measured.

    Reconstructions are rounded to 8 bits before they are measured.

    Raises:
        MissingExtraError: torchmetrics is not installed.
    """
    images = tok.preprocess(picture)
    ids = tok.encode(images)
    original, back = to_pil(images[0]), to_pil(tok.decode(ids)[0])
    pair = to_tensor(original)[None], to_tensor(back)[None]
    semantic, pixel = (codes[0].cpu() for codes in tok.split(ids))
    figures = {
        "psnr_db": float(psnr(*pair)),
        "ssim": float(ssim(*pair)),
        "bytes": float(math.ceil(ids.numel() * math.log2(tok.vocab_size) / 8)),
    }
    for codec in CODECS:
        data = at_smallest(codec, original)
        figures[f"{codec.name}.bytes"] = float(len(data))
        figures[f"{codec.name}.psnr_db"] = codec_psnr(codec, original, data)
    return Exhibit(
        name=name,
        original=original,
        reconstruction=back,
        semantics=to_pil(tok.decode_semantics(ids)[0]),
        tokens=token_map(semantic, pixel, tok.patch_size),
        ids=ids[0].cpu(),
        figures=figures,
    )


def mean_figures(exhibits: Sequence[Exhibit]) -> dict[str, float]:
    """The mean of each figure."""
    return {key: fmean(e.figures[key] for e in exhibits) for key in exhibits[0].figures}


def cells(figures: dict[str, float]) -> list[str]:
    """Figures as text, under COLUMNS."""
    row = [f"{figures['psnr_db']:.2f}", f"{figures['ssim']:.3f}", f"{figures['bytes']:,.0f}"]
    for codec in CODECS:
        row.append(f"{figures[f'{codec.name}.bytes']:,.0f}")
        row.append(f"{figures[f'{codec.name}.psnr_db']:.2f}")
    return row


def ids_of(config: TokenizerConfig, digest: str, exhibits: Sequence[Exhibit]) -> dict[str, Any]:
    """The ids of each picture by rows of its grid, and whose they are."""
    pictures = [{"name": e.name, "ids": e.ids.tolist()} for e in exhibits]
    return {
        "model": config.name,
        "hash": digest,
        "semantic_codes": config.semantic.num_codes,
        "pixel_codes": config.pixel.num_codes,
        "patch_size": config.patch_size,
        "pictures": pictures,
    }


def contact_sheet_of(exhibits: Sequence[Exhibit]) -> Image.Image:
    """A row a picture: original, reconstruction, semantics alone, tokens."""
    rows = []
    for e in exhibits:
        figures = e.figures
        h, w = e.ids.shape
        rows.append(
            [
                (e.original, f"{e.name}, {e.original.width} x {e.original.height} px"),
                (
                    e.reconstruction,
                    f"from {figures['bytes']:,.0f} bytes of tokens: {figures['psnr_db']:.2f} dB, "
                    f"SSIM {figures['ssim']:.3f}",
                ),
                (e.semantics, "semantic codes alone"),
                (e.tokens, f"{h} x {w} tokens"),
            ]
        )
    return contact_sheet(rows)


# ----------------------------------------------------------------------------------------- page

_STYLE = """
:root { color-scheme: light dark; --paper: #fbfbf9; --ink: #1d1f21; --soft: #63686e;
  --line: #dfe0dc; --card: #fff; --mark: #f1f5ff; }
@media (prefers-color-scheme: dark) { :root { --paper: #15171a; --ink: #e6e7e8; --soft: #9aa0a6;
  --line: #32363b; --card: #1c1f23; --mark: #1f2837; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 72rem; padding: 2rem 1.25rem 4rem; background: var(--paper);
  color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.7rem; margin: 0 0 .25rem; } h2 { font-size: 1.15rem; margin: 0 0 .75rem; }
p { max-width: 46rem; } .soft, figcaption, caption { color: var(--soft); font-size: .875rem; }
code { font-size: .85em; overflow-wrap: anywhere; }
section { background: var(--card); border: 1px solid var(--line); border-radius: .6rem;
  padding: 1rem 1.25rem; margin: 1.25rem 0; }
.views { display: grid; grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr)); gap: 1rem; }
figure { margin: 0; } figcaption { margin-top: .35rem; }
img { display: block; width: 100%; height: auto; border-radius: .3rem; image-rendering: pixelated; }
.wide { overflow-x: auto; margin-top: 1rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
caption { text-align: left; padding-bottom: .35rem; }
th, td { padding: .3rem .9rem .3rem 0; text-align: right; border-bottom: 1px solid var(--line);
  white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } .own { background: var(--mark); }
"""


def page_of(config: TokenizerConfig, digest: str, exhibits: Sequence[Exhibit]) -> str:
    """One HTML file that needs nothing else: pictures are embedded, and nothing is fetched."""
    name = html.escape(config.name)
    bits = math.log2(config.vocab_size)
    sections = "".join(_section(e) for e in exhibits)
    summary = ""
    if len(exhibits) > 1:
        table = _table(mean_figures(exhibits), f"Mean of {len(exhibits)} pictures")
        summary = f"<section><h2>On average</h2>{table}</section>"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>SemHiTok: {name}</title>\n<style>{_STYLE}</style></head>\n<body>\n"
        f"<h1>SemHiTok <span class=soft>{name}</span></h1>\n"
        f"<p>Each patch of {config.patch_size} x {config.patch_size} pixels is one token: one of "
        f"{config.semantic.num_codes:,} semantic codes, which tell what it shows, and one of that "
        f"code's {config.pixel.num_codes:,} pixel codes, which tell how it looks. A token is "
        f"{bits:.4g} bits.</p>\n{summary}\n{sections}\n"
        f"<p class=soft>Model hash <code>{digest}</code>. The codecs are at their lowest quality, "
        "the smallest files that they write; their bytes are whole files, those of the tokens are "
        "the tokens alone, without entropy coding.</p>\n</body></html>\n"
    )


def _section(e: Exhibit) -> str:
    h, w = e.ids.shape
    views = (
        (e.original, "original", f"{e.original.width} x {e.original.height} px"),
        (e.reconstruction, "reconstruction", "from the tokens"),
        (e.semantics, "semantics alone", "pixel codes left out"),
        (e.tokens, "tokens", f"{h} x {w}; hue: semantic, lightness: pixel code"),
    )
    name = html.escape(e.name)
    figures = "".join(
        f'<figure><img src="{_data_uri(image)}" width="{image.width}" height="{image.height}" '
        f'alt="{name}, {title}"><figcaption>{title}: {note}</figcaption>'
        "</figure>\n"
        for image, title, note in views
    )
    return (
        f"<section><h2>{name}</h2>\n<div class=views>\n{figures}</div>\n{_table(e.figures)}"
        "</section>\n"
    )


def _table(figures: dict[str, float], caption: str = "") -> str:
    head = "<tr><th>as</th><th>bytes</th><th>PSNR, dB</th><th>SSIM</th></tr>"
    rows = [
        f"<tr class=own><td>tokens</td><td>{figures['bytes']:,.0f}</td>"
        f"<td>{figures['psnr_db']:.2f}</td><td>{figures['ssim']:.3f}</td></tr>"
    ]
    for codec in CODECS:
        rows.append(
            f"<tr><td>{NAMES[codec.name]}, smallest</td>"
            f"<td>{figures[f'{codec.name}.bytes']:,.0f}</td>"
            f"<td>{figures[f'{codec.name}.psnr_db']:.2f}</td><td></td></tr>"
        )
    title = f"<caption>{caption}</caption>" if caption else ""
    return f"<div class=wide><table>{title}{head}{''.join(rows)}</table></div>"


def _data_uri(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
