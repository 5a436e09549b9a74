"""`semhitok draw`: pictures of a text, and their ids."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from semhitok.cli.console import (
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
    from jaxtyping import Int64
    from torch import Tensor

    from semhitok.lm.assistant import Assistant

TOKENS = "tokens.parquet"


def draw(
    model: MultimodalArgument,
    prompt: Annotated[
        list[str],
        typer.Argument(metavar="PROMPT...", help="What to draw.", show_default=False),
    ],
    out: Annotated[Path, typer.Option("--out", help="The folder of the pictures.")],
    count: Annotated[int, typer.Option("--count", min=1, help="Pictures of each prompt.")] = 1,
    size: PatchesOption = None,
    guidance: GuidanceOption = 3.0,
    temperature: TemperatureOption = 1.0,
    top_k: TopKOption = None,
    top_p: TopPOption = 1.0,
    seed: SeedOption = 0,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Pictures at once.")] = 4,
    tokenizer: ImageTokenizerOption = None,
    device: DeviceOption = None,
    json_: JsonOption = False,
) -> None:
    """Draw pictures of a text.

    They are PNG files, named by number; beside them is tokens.parquet with their ids, which
    semhitok decode reads. The same seed draws the same pictures.
    """
    check_output_folder(out)
    from semhitok.cli.models import load_assistant, pick_device
    from semhitok.files import check_writable
    from semhitok.images import to_pil
    from semhitok.lm.picture_sets import Folder
    from semhitok.lm.sampling import Sampling

    patches = parse_patches(size)
    sampling = Sampling.of_images(temperature, top_k, top_p, guidance=guidance)
    assistant = load_assistant(model, tokenizer, pick_device(device))
    check_writable(out, needed_bytes=0)
    prompts = [text for text in prompt for _ in range(count)]
    grids: list[Int64[Tensor, "h w"]] = []
    names = [f"{number:04d}.png" for number in range(len(prompts))]
    with progress("drawing", len(prompts)) as advance:
        for start in range(0, len(prompts), batch_size):
            drawn = assistant.draw(
                prompts[start : start + batch_size],
                size=patches,
                sampling=sampling,
                seed=seed + start,
            )
            for grid in drawn:
                Folder(out).put(names[len(grids)], to_pil(assistant.paint(grid)))
                grids.append(grid)
            advance(len(grids))
    _write_tokens(assistant, out / TOKENS, names, prompts, grids)
    if json_:
        record: dict[str, Any] = {"out": str(out), "tokens": str(out / TOKENS), "seed": seed}
        record["pictures"] = [
            {"file": str(out / name), "prompt": text}
            for name, text in zip(names, prompts, strict=True)
        ]
        print_json(record)
    else:
        for name in names:
            print(out / name)


def _write_tokens(
    assistant: Assistant,
    path: Path,
    names: list[str],
    prompts: list[str],
    grids: list[Int64[Tensor, "h w"]],
) -> None:
    from semhitok import __version__
    from semhitok.data.tokens import TokenMetadata, TokenRecord, write_tokens

    tok = assistant.tokenizer
    metadata = TokenMetadata(
        model=tok.config.name,
        hash=tok.hash,
        num_semantic=tok.config.semantic.num_codes,
        num_pixel=tok.config.pixel.num_codes,
        patch_size=tok.patch_size,
        policy="drawn by semhitok draw",
        dtype="float32",
        version=__version__,
    )
    records = [
        TokenRecord(Path(name).stem, *tok.split(grid), {"prompt": text})
        for name, text, grid in zip(names, prompts, grids, strict=True)
    ]
    write_tokens(path, records, metadata)
