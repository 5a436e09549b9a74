"""`semhitok evaluate`: the report on reconstruction, rate and codes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from semhitok.cli.console import (
    SOME_FAILED,
    BatchOption,
    DeviceOption,
    JsonOption,
    check_output_file,
    message,
    parse_side,
    print_json,
    print_table,
    progress,
)


def evaluate(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL", help="Bundled names, model folders, or Hub ids.", show_default=False
        ),
    ],
    data: Annotated[
        list[str],
        typer.Option("--data", help="Folder, .parquet, .tar or Hub data set; may be repeated."),
    ],
    resolution: Annotated[
        str | None,
        typer.Option(
            "--resolution", help="Short side in pixels, or 'native'; by default the model's own."
        ),
    ] = None,
    crop: Annotated[
        Literal["square", "grid"],
        typer.Option("--crop", help="Cut to a square, or only to whole patches."),
    ] = "square",
    max_images: Annotated[
        int | None, typer.Option("--max-images", min=1, help="So many, evenly spaced.")
    ] = None,
    judge: Annotated[
        Path | None, typer.Option("--judge", help="Folder with the weights of LPIPS.")
    ] = None,
    decoder: Annotated[
        Literal["pixel", "enhance"] | None,
        typer.Option("--decoder", help="By default the best that the model has."),
    ] = None,
    batch_size: BatchOption = 16,
    device: DeviceOption = None,
    json_: JsonOption = False,
    out: Annotated[
        Path | None, typer.Option("--out", help="Write the reports to this JSON file too.")
    ] = None,
) -> None:
    """The report on pictures and codes.

    PSNR, SSIM, LPIPS, rate and use of the codes, with the protocol behind each figure. As
    JSON a list of reports, one a model.
    """
    if out is not None:
        check_output_file(out)
    import json
    from dataclasses import asdict

    from semhitok import hub
    from semhitok.cli.models import load_model, pick_device
    from semhitok.data.sources import open_source
    from semhitok.errors import NotFoundError
    from semhitok.evaluate.reconstruction import evaluate as measure
    from semhitok.files import write_file
    from semhitok.images import ImagePolicy

    configs = [hub.read_config(hub.resolve(name)) for name in models]
    sides = [parse_side(resolution, "--resolution", config.image_size) for config in configs]
    for config, side in zip(configs, sides, strict=True):
        ImagePolicy(size=side, crop=crop, multiple=config.patch_size)  # refuses what does not fit
        if decoder == "enhance" and config.pixel.enhance is None:
            raise NotFoundError(f"{config.name} has no decoder 'enhance'; it has: 'pixel'")
    where = pick_device(device)
    source = open_source(list(data))
    reports = []
    for name, side in zip(models, sides, strict=True):
        with progress(name, len(source)) as advance:
            report = measure(
                load_model(name, where),
                source,
                resolution=side,
                crop=crop,
                max_images=max_images,
                batch_size=batch_size,
                judge=judge,
                decoder=decoder,
                progress=lambda done, _, advance=advance: advance(done),
            )
        reports.append(report)
        if not json_:
            print_table(report.table())
    records = [asdict(report) for report in reports]
    if out is not None:
        text = json.dumps(records, indent=2) + "\n"
        write_file(out, lambda temporary: temporary.write_text(text))
    if json_:
        print_json(records)
    failed: dict[str, str] = {k: v for r in reports for k, v in r.figures["failed"].items()}
    for key, reason in failed.items():
        message(f"failed: {key}: {' '.join(reason.split())}")
    if failed:
        raise typer.Exit(SOME_FAILED)
