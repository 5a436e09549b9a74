"""What error feedback of the semantic search buys: a trained model, probed with and without it.

    python scripts/feedback.py caltech101-train.parquet caltech101-val.parquet --model tiny

The model's codes stay as they are; only the search changes. The protocol follows the table.
"""

from __future__ import annotations

import argparse
import json

from semhitok import SemHiTok, __version__
from semhitok.data.sources import open_source
from semhitok.evaluate.semantics import probe_semantics
from semhitok.model.config import FeedbackConfig

SETTINGS = (
    None,
    FeedbackConfig(rounds=1, rate=1.0),
    FeedbackConfig(rounds=2, rate=0.5),
    FeedbackConfig(rounds=4, rate=0.25),
    FeedbackConfig(rounds=8, rate=0.125),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("train", help="labelled pictures to fit the probe to")
    parser.add_argument("val", help="and to measure it on")
    parser.add_argument("--model", default="tiny")
    options = parser.parse_args()
    model = SemHiTok.from_pretrained(options.model)
    train, val = open_source(options.train), open_source(options.val)
    print("| rounds x rate | probe of codes, % | probe of told features, % | cosine told |")
    print("|---|---:|---:|---:|")
    for feedback in SETTINGS:
        model.semantic.codebook.feedback = feedback
        found = probe_semantics(model, train, val, model.config.image_size, pixel=False)
        probe = found["linear_probe"]
        name = "none" if feedback is None else f"{feedback.rounds} x {feedback.rate:g}"
        codes, told = (100 * probe[key] for key in ("quantized", "semantic_features"))
        print(f"| {name} | {codes:.1f} | {told:.1f} | {found['cosine']:.3f} |", flush=True)
    print(f"\nteacher {100 * probe['teacher']:.1f}; {model.config.name} {model.hash[:12]}")
    print(json.dumps({**found["protocol"], "semhitok": __version__}))


if __name__ == "__main__":
    main()
