"""`semhitok lm draw-set`: the prompts of a public benchmark, drawn where it looks for pictures."""

from __future__ import annotations

from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from semhitok.cli.console import (
    BatchOption,
    DeviceOption,
    GuidanceOption,
    ImageTokenizerOption,
    JsonOption,
    MultimodalArgument,
    PatchesOption,
    SeedOption,
    TemperatureOption,
    TopKOption,
    TopPOption,
    check_output_folder,
    parse_patches,
    print_json,
    progress,
)

if TYPE_CHECKING:
    from semhitok.lm.prompt_sets import PromptSet


class LayoutName(StrEnum):
    """Whose files they are."""

    MJHQ = "mjhq"
    GENEVAL = "geneval"


def draw_set(
    model: MultimodalArgument,
    prompts: Annotated[
        Path,
        typer.Argument(
            metavar="PROMPTS",
            help="meta_data.json of MJHQ-30K, or evaluation_metadata.jsonl of GenEval.",
            show_default=False,
        ),
    ],
    layout: Annotated[LayoutName, typer.Option("--layout", help="Of PROMPTS and of OUT.")],
    out: Annotated[Path, typer.Option("--out", help="The folder; an interrupted run goes on.")],
    samples: Annotated[
        int | None,
        typer.Option("--samples", min=1, help="Pictures of a prompt, for GenEval: by default 4."),
    ] = None,
    size: PatchesOption = None,
    guidance: GuidanceOption = 3.0,
    temperature: TemperatureOption = 1.0,
    top_k: TopKOption = None,
    top_p: TopPOption = 1.0,
    seed: SeedOption = 0,
    batch_size: BatchOption = 16,
    tokenizer: ImageTokenizerOption = None,
    device: DeviceOption = None,
    json_: JsonOption = False,
) -> None:
    """Draw the prompts of a benchmark.

    MJHQ-30K gets OUT/CATEGORY/ID.png; GenEval OUT/00000/metadata.jsonl and
    OUT/00000/samples/00000.png. What is there whole is not drawn again, and each picture follows
    from the seed and its own key, wherever a run was interrupted.
    """
    check_output_folder(out)
    found = _read(prompts, layout, samples)
    from semhitok.cli.models import load_assistant, pick_device
    from semhitok.files import write_file
    from semhitok.lm.claims import claim_folder
    from semhitok.lm.picture_sets import Folder, draw_missing
    from semhitok.lm.sampling import Sampling

    patches = parse_patches(size)
    sampling = Sampling.of_images(temperature, top_k, top_p, guidance=guidance)
    assistant = load_assistant(model, tokenizer, pick_device(device))
    drawn_at = patches or assistant.size
    assistant.processor.vocabulary.check_side(*drawn_at)
    claim_folder(
        out,
        {
            "model": assistant.hash,
            "prompts": found.sha256,
            "layout": layout.value,
            "size": list(drawn_at),
            "sampling": asdict(sampling),
            "seed": seed,
        },
    )
    for name, text in found.beside.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        write_file(out / name, lambda path, text=text: path.write_text(text + "\n", "utf-8"))
    with progress("drawing", len(found.wanted)) as advance:
        drawn = draw_missing(
            assistant,
            found.wanted,
            Folder(out),
            sampling=sampling,
            seed=seed,
            size=drawn_at,
            batch_size=batch_size,
            advance=advance,
        )
    if json_:
        print_json({"out": str(out), "pictures": len(found.wanted), "drawn": drawn})
    else:
        print(f"{out}: {len(found.wanted):,} pictures, {drawn:,} of them drawn now")


def _read(prompts: Path, layout: LayoutName, samples: int | None) -> PromptSet:
    from semhitok.errors import RangeError
    from semhitok.lm.prompt_sets import GENEVAL_SAMPLES, read_geneval, read_mjhq

    if layout is LayoutName.GENEVAL:
        return read_geneval(prompts, samples or GENEVAL_SAMPLES)
    if samples is not None:
        raise RangeError(f"--samples is {samples}; MJHQ-30K has one picture a prompt: leave it out")
    return read_mjhq(prompts)
