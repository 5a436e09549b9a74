"""The study's one dial: how much data, how many steps and how wide, together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from semhitok.errors import NotFoundError, near_matches


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Sizes that all rows of a study share."""

    name: str
    num_semantic: int
    """K of the rows that do not vary it."""
    num_pixel: int
    """m likewise; K * m is what every row may spend a patch, but where a row's title says so."""
    width: int
    """Channels of the transformers; heads are 32 wide."""
    encoder_depth: int
    decoder_depth: int
    stage_widths: tuple[int, ...]
    """Channels of the decoder's convolutions at 2x and 4x the grid."""
    batch_size: int
    """Crops of 64 px a step."""
    semantic_steps: int
    pixel_steps: int
    """A joint training has the same steps, with both losses at every one of them."""
    enhance_steps: int
    photos: int
    """Held-out pictures that reconstruction is measured on."""
    probe: tuple[int, int]
    """Labelled pictures that the linear probe is fitted to, and measured on."""
    buffer_rows: int = 65_536
    """Latents that codebooks start from (k-means)."""
    resolution: int
    """Side in pixels of the measured pictures."""

    def overlay(self) -> dict[str, Any]:
        """This scale as part of a recipe."""
        heads = self.width // 32
        transformer = {"width": self.width, "heads": heads}
        decoder = {
            "transformer": {**transformer, "depth": self.decoder_depth},
            "stage_widths": list(self.stage_widths),
            "stage_depths": [1] * len(self.stage_widths),
        }
        return {
            "model": {
                "image_size": self.resolution,
                "semantic": {
                    "num_codes": self.num_semantic,
                    "decoder": {**transformer, "depth": 1},
                },
                "pixel": {
                    "num_codes": self.num_pixel,
                    "encoder": {**transformer, "depth": self.encoder_depth},
                    "decoder": decoder,
                },
            },
            "semantic": self._stage(self.semantic_steps),
            "pixel": self._stage(self.pixel_steps),
        }

    def _stage(self, steps: int) -> dict[str, Any]:
        return {"phases": self.phases(steps), "buffer_rows": self.buffer_rows}

    def phases(self, steps: int) -> list[dict[str, Any]]:
        """A stage of so many steps."""
        return [{"steps": steps, "crop": 64, "batch_size": self.batch_size, "enlarge": True}]


SCALES = {
    scale.name: scale
    for scale in (
        # Shows that every row runs; its figures mean nothing.
        Scale(
            name="smoke",
            num_semantic=16, num_pixel=16, width=32, encoder_depth=1, decoder_depth=1,
            stage_widths=(8, 8), batch_size=8, semantic_steps=3, pixel_steps=3, enhance_steps=3,
            photos=8, probe=(40, 20), buffer_rows=512, resolution=64,
        ),
        # Two CPU cores: the published study.
        Scale(
            name="small",
            num_semantic=256, num_pixel=64, width=128, encoder_depth=2, decoder_depth=3,
            stage_widths=(48, 24), batch_size=32, semantic_steps=500, pixel_steps=500,
            enhance_steps=200, photos=500, probe=(2902, 997), resolution=128,
        ),
        # One GPU.
        Scale(
            name="medium",
            num_semantic=1024, num_pixel=64, width=256, encoder_depth=4, decoder_depth=6,
            stage_widths=(96, 48), batch_size=128, semantic_steps=6000, pixel_steps=6000,
            enhance_steps=2000, photos=1000, probe=(6000, 2000), resolution=128,
        ),
    )
}  # fmt: skip


def find_scale(name: str) -> Scale:
    """The scale of that name.

    Raises:
        NotFoundError: there is none.
    """
    if name not in SCALES:
        raise NotFoundError(f"there is no scale {name!r}{near_matches(name, SCALES)}")
    return SCALES[name]
