"""How a model uses its codes, drawn."""

from __future__ import annotations

import io
import math
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int64
from PIL import Image
from torch import Tensor

from semhitok.evaluate.codebooks import CodebookStatistics
from semhitok.extras import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PANEL_INCHES = (4.4, 3.9)
DOTS_PER_INCH = 110

_INK, _SOFT, _BLUE, _ORANGE = "#222222", "#8a8a8a", "#2b6cb0", "#c05621"


def plot_codes(counts: Int64[Tensor, "K m"], title: str) -> Image.Image:
    """Panels side by side: how often codes are chosen, how many pixel codes a parent uses, bits.

    One codebook (K or m is 1) has no parents, and no second panel.

    Args:
        counts: patches by semantic code (row) and pixel code (column).

    Raises:
        DataError: all counts are zero.
        MissingExtraError: matplotlib is not installed.
    """
    statistics = CodebookStatistics.from_counts(counts)
    figures = require("matplotlib.figure", "evaluate")
    hierarchical = min(counts.shape) > 1
    columns = 3 if hierarchical else 2
    width, height = PANEL_INCHES
    figure = figures.Figure(figsize=(columns * width, height), dpi=DOTS_PER_INCH, facecolor="white")
    figure.set_layout_engine("constrained", w_pad=0.12, h_pad=0.08)
    panels = figure.subplots(1, columns)
    # A dollar sign would begin a formula.
    figure.suptitle(f"{title}: {statistics.patches:,} patches".replace("$", r"\$"), color=_INK)
    if hierarchical:
        _chosen(panels[0], counts.sum(dim=1), "semantic codes")
        _occupancy(panels[1], counts)
    else:
        _chosen(panels[0], counts.flatten(), "codes")
    _bits(panels[-1], statistics, *counts.shape)
    for panel in panels:
        panel.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return Image.open(buffer).convert("RGB")


def _chosen(panel: Axes, counts: Int64[Tensor, k], codes: str) -> None:
    """Patches of each code, most frequent first."""
    ordered = counts.sort(descending=True).values.numpy()
    seen, even = int((ordered > 0).sum()), ordered.sum() / len(ordered)
    ranks = np.arange(1, seen + 1)
    panel.plot(ranks, ordered[:seen], color=_BLUE, marker="." if seen < 50 else "")
    panel.axhline(even, color=_ORANGE, linestyle="--", label=f"even use: {even:,.3g} patches")
    if seen < len(ordered):
        label = f"never chosen: {len(ordered) - seen:,}"
        panel.axvspan(seen + 0.5, len(ordered) + 0.5, color=_SOFT, alpha=0.2, lw=0, label=label)
    panel.set_yscale("log")
    panel.yaxis.set_major_formatter("{x:,g}")
    panel.set_ylim(bottom=min(0.7, even / 1.5))
    panel.set_xlim(0.5, len(ordered) + 0.5)
    panel.set_title(f"{seen:,} of {len(ordered):,} {codes} chosen", fontsize=11)
    panel.set_xlabel(f"{codes}, most frequent first (rank)")
    panel.set_ylabel("patches (log scale)")
    panel.legend(fontsize=8.5, frameon=False)


def _occupancy(panel: Axes, counts: Int64[Tensor, "K m"]) -> None:
    """Distinct pixel codes of each parent against its patches."""
    num_pixel = counts.shape[1]
    patches = counts.sum(dim=1).numpy()
    used = (counts > 0).sum(dim=1).numpy()
    seen = patches > 0
    reach = np.geomspace(1, max(patches.max(), 2), 100)
    even = num_pixel * (1 - (1 - 1 / num_pixel) ** reach)
    panel.plot(reach, even, color=_ORANGE, linestyle="--", label="expected if all were as likely")
    panel.axhline(num_pixel, color=_SOFT, lw=1, label=f"all {num_pixel:,}")
    panel.scatter(patches[seen], used[seen], s=14, color=_BLUE, alpha=0.5, lw=0, label="a parent")
    panel.set_xscale("log")
    panel.xaxis.set_major_formatter("{x:,g}")
    panel.set_yscale("log")
    panel.yaxis.set_major_formatter("{x:,g}")
    panel.set_ylim(0.8, num_pixel * 1.5)
    panel.set_title(f"Pixel codes used, of the {num_pixel:,} of a parent", fontsize=11)
    panel.set_xlabel("patches of the parent (log scale)")
    panel.set_ylabel("distinct pixel codes used (log scale)")
    panel.legend(fontsize=8.5, loc="lower right", edgecolor="none")


def _bits(panel: Axes, s: CodebookStatistics, num_semantic: int, num_pixel: int) -> None:
    """Entropy of each level beside what its codes could tell."""
    levels = {
        "semantic code": (s.semantic_entropy, math.log2(num_semantic)),
        "pixel code, given\nits semantic code": (s.pixel_entropy, math.log2(num_pixel)),
        "id (both)": (s.joint_entropy, math.log2(num_semantic * num_pixel)),
    }
    if 1 in (num_semantic, num_pixel):
        levels = {"code": levels["id (both)"]}
    for row, (entropy, possible) in enumerate(levels.values()):
        panel.barh(row, possible, height=0.5, color=_SOFT, alpha=0.25)
        panel.barh(row, entropy, height=0.5, color=_BLUE, alpha=0.75)
        panel.text(0, row - 0.3, f" {entropy:.2f} of {possible:.4g} bits", va="bottom", fontsize=10)
    panel.set_yticks(range(len(levels)), list(levels))
    panel.set_ylim(len(levels) - 0.6, -0.7)
    panel.set_title("Entropy, of the bits that a code has", fontsize=11)
    panel.set_xlabel("bits a patch")
