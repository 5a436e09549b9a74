"""Put a trained run into the package: weights, figures, card and golden ids.

    python scripts/bundle.py runs/tiny --shared ../shared --name tiny --hours 1.3

Every figure of the card is measured here, on the packs of `--shared`/data.
"""

from __future__ import annotations

import argparse
import json
from importlib import resources
from pathlib import Path
from typing import Any

from semhitok import SemHiTok, hub
from semhitok.data.sources import open_source
from semhitok.evaluate.adapters import TokenizerAdapter
from semhitok.evaluate.reconstruction import evaluate
from semhitok.evaluate.report import Report
from semhitok.evaluate.semantics import probe_semantics
from semhitok.model.tokenizer import DecoderName

ROOT = Path(__file__).parent.parent
CARD = Path(__file__).parent / "card.md"


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
    reports: dict[str, Any] = {}
    decoders: tuple[DecoderName, ...] = ("enhance", "pixel")
    for decoder in decoders:
        report = evaluate(TokenizerAdapter(model, decoder), photos, resolution=128, judge=judge)
        reports[f"imagenet1k-dev, {decoder}"] = without_pictures(report)
    small = open_source(data / "tiny-imagenet-val.parquet")
    reports["tiny-imagenet-val"] = without_pictures(
        evaluate(TokenizerAdapter(model), small, resolution=64)
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
    best, plain = (
        figures["evaluation"][f"imagenet1k-dev, {decoder}"]["figures"]
        for decoder in ("enhance", "pixel")
    )
    codes = figures["evaluation"]["tiny-imagenet-val"]["figures"]["codes"]
    values: dict[str, Any] = {
        "hash": model.hash,
        "hours": hours,
        "K": model.config.semantic.num_codes,
        "m": model.config.pixel.num_codes,
        "bytes": best["rate"]["bytes_per_picture"],
    }
    for name, report in (("enhance", best), ("pixel", plain)):
        for key in ("psnr_db", "ssim", "lpips_squeeze"):
            values[f"{name}_{key}"] = report[key]["mean"]
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
