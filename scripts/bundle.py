"""Put a trained run into the package: weights, figures, card and golden ids.

    python scripts/bundle.py runs/tiny --shared ../shared --name tiny --hours 1.3

Every figure of the card is measured here, on the packs of `--shared`/data.
"""

from __future__ import annotations

import argparse
import json
import math
from importlib import resources
from pathlib import Path
from typing import Any

from semhitok import SemHiTok, hub
from semhitok.data.sources import open_source
from semhitok.evaluate.adapters import Adapter, CodecAdapter, TokenizerAdapter
from semhitok.evaluate.codecs import AVIF, WEBP
from semhitok.evaluate.reconstruction import evaluate
from semhitok.evaluate.report import Report
from semhitok.evaluate.semantics import probe_semantics
from semhitok.model.tokenizer import DecoderName

ROOT = Path(__file__).parent.parent
CARD = Path(__file__).parent / "card.md"
DECODERS: tuple[DecoderName, ...] = ("enhance", "pixel")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("run", type=Path, help="a finished run folder")
    parser.add_argument("--shared", type=Path, required=True, help="folder of data/ and judges/")
    parser.add_argument("--name", default="tiny")
    parser.add_argument("--hours", type=float, required=True, help="that the training took")
    arguments = parser.parse_args()
    model = SemHiTok.from_pretrained(arguments.run / "model")
    training = hub.read_metrics(arguments.run / "model")["training"]
    figures = measure(model, training, arguments.shared)
    folder = ROOT / "src/semhitok/zoo" / arguments.name
    card = fill(CARD.read_text(), model, figures, arguments.hours)
    hub.save(model, folder, card=card, metrics=figures)
    write_golden(model, ROOT / f"tests/golden/{arguments.name}-chelsea.json")
    print(f"{folder}: {sum(f.stat().st_size for f in folder.iterdir()):,} bytes")


def measure(model: SemHiTok, training: dict[str, Any], shared: Path) -> dict[str, Any]:
    """Reports by what they measure; `figures` and `protocol` in each."""
    data, judge = shared / "data", shared / "judges"
    photos = open_source(data / "imagenet1k-dev.parquet")
    ours: dict[str, Adapter] = {name: TokenizerAdapter(model, name) for name in DECODERS}
    bytes_per_pixel = math.log2(model.vocab_size) / 8 / model.patch_size**2
    codecs = {codec.name.lower(): CodecAdapter(codec, bytes_per_pixel) for codec in (WEBP, AVIF)}
    reports: dict[str, Any] = {}
    for name, adapter in {**ours, **codecs}.items():
        report = evaluate(adapter, photos, resolution=128, multiple=model.patch_size, judge=judge)
        reports[f"imagenet1k-dev, {name}"] = without_pictures(report)
    larger = evaluate(ours["enhance"], photos, resolution=256, judge=judge)
    reports["imagenet1k-dev at 256 px, enhance"] = without_pictures(larger)
    kodak = open_source(data / "kodak-test.parquet")
    for name, adapter in ours.items():
        report = evaluate(adapter, kodak, resolution=None, crop="grid", judge=judge)
        reports[f"kodak-test, {name}"] = without_pictures(report)
    small = open_source(data / "tiny-imagenet-val.parquet")
    reports["tiny-imagenet-val"] = without_pictures(
        evaluate(ours["enhance"], small, resolution=128)
    )
    probes = {}
    for pack in ("caltech101", "tiny-imagenet"):
        train, val = (open_source(data / f"{pack}-{part}.parquet") for part in ("train", "val"))
        probes[pack] = probe_semantics(model, train, val, 128)
    return {"training": training, "evaluation": reports, "probes": probes}


def without_pictures(report: Report) -> dict[str, Any]:
    """Figures and protocol; what single pictures have is too much for a model folder."""
    return {"figures": report.figures, "protocol": report.protocol}


def fill(template: str, model: SemHiTok, figures: dict[str, Any], hours: float) -> str:
    """The card with its figures in the places of `{...}`."""
    reports = {name: report["figures"] for name, report in figures["evaluation"].items()}
    codes = reports["tiny-imagenet-val"]["codes"]
    values: dict[str, Any] = {
        "hash": model.hash,
        "hours": hours,
        "K": model.config.semantic.num_codes,
        "m": model.config.pixel.num_codes,
        "kept": reports["imagenet1k-dev at 256 px, enhance"]["judge_top1_kept"],
    }
    for name in (*DECODERS, "webp", "avif"):
        report = reports[f"imagenet1k-dev, {name}"]
        for key in ("psnr_db", "ssim", "lpips_squeeze", "judge_cosine"):
            values[f"{name}_{key}"] = report[key]["mean"]
        values[f"{name}_fd_judge"] = report["fd_judge"]
        values[f"{name}_bytes"] = report["rate"]["bytes_per_picture"]
    for name in DECODERS:
        report = reports[f"kodak-test, {name}"]
        for key in ("psnr_db", "lpips_squeeze"):
            values[f"{name}_kodak_{key}"] = report[key]["mean"]
    values |= codes
    values["caltech101_kmeans"] = 100 * figures["training"]["linear_probe"]["kmeans"]
    for data, probe in figures["probes"].items():
        for key, accuracy in probe["linear_probe"].items():
            values[f"{data.replace('-', '_')}_{key}"] = 100 * accuracy
    return template.format(**values)


def write_golden(model: SemHiTok, path: Path) -> None:
    """Ids of the cat of scikit-image, which stay what they are as long as the model does."""
    with resources.as_file(resources.files("skimage") / "data" / "chelsea.png") as picture:
        ids = model.encode(model.preprocess(picture))[0]
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"hash": model.hash, "ids": ids.tolist()}) + "\n")


if __name__ == "__main__":
    main()
