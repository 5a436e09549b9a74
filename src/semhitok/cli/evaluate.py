"""`semhitok evaluate`: the report on reconstruction, rate and codes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Literal

import typer

from semhitok.cli.console import (
    SOME_FAILED,
    BatchOption,
    DataOption,
    DeviceOption,
    JsonOption,
    ProbeOption,
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
            metavar="MODEL...",
            help="Bundled names, model folders, Hub ids; jpeg, webp or avif; or the adapter of "
            "another tokenizer, package.module:name.",
            show_default=False,
        ),
    ],
    data: DataOption,
    resolution: Annotated[
        str | None,
        typer.Option(
            "--resolution", help="Short side in pixels, or 'native'; by default the first model's."
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
        Path | None,
        typer.Option("--judge", help="Folder with SqueezeNet's and LPIPS' weights."),
    ] = None,
    inception: Annotated[
        str | None,
        typer.Option(
            "--inception", help="FID-Inception's weights for rFID: a file, or 'download'."
        ),
    ] = None,
    decoder: Annotated[
        Literal["pixel", "enhance"] | None,
        typer.Option("--decoder", help="Of our models; by default the best that each has."),
    ] = None,
    probe: ProbeOption = None,
    similarity: Annotated[
        bool,
        typer.Option(
            "--similarity", help="How alike the patches of one semantic code are, in our models."
        ),
    ] = False,
    batch_size: BatchOption = 16,
    device: DeviceOption = None,
    json_: JsonOption = False,
    out: Annotated[
        Path | None, typer.Option("--out", help="Write the reports to this JSON file too.")
    ] = None,
) -> None:
    """The report on pictures and codes.

    PSNR, SSIM, LPIPS, judge, rFID, rate and use of the codes, and with --probe what the codes know
    of classes; each with its protocol. All models see the same pictures; a second one and more are
    compared with the first, picture by picture. Codecs get the bytes that the first model uses.
    JSON is a list of reports.
    """
    if out is not None:
        check_output_file(out)
    import json
    from dataclasses import asdict

    from semhitok.cli.models import find_adapters, pick_device
    from semhitok.data.sources import open_source
    from semhitok.evaluate.adapters import TokenizerAdapter
    from semhitok.evaluate.inception import download, find_inception
    from semhitok.evaluate.reconstruction import evaluate as measure
    from semhitok.evaluate.report import comparison_table, paired_differences, protocol_table
    from semhitok.evaluate.semantics import check_labels, probe_semantics
    from semhitok.evaluate.similarity import similarity as measure_similarity
    from semhitok.files import write_file
    from semhitok.images import ImagePolicy

    where = pick_device(device)
    adapters = find_adapters(models, where, decoder)
    side = parse_side(resolution, "--resolution", adapters.image_size)
    multiple = math.lcm(*(adapter.multiple for adapter in adapters.items))
    ImagePolicy(size=side, crop=crop, multiple=multiple)  # refuses what does not fit
    weights = download() if inception == "download" else find_inception(inception)
    source = open_source(list(data))
    labelled = None if probe is None else (open_source(probe[0]), open_source(probe[1]))
    for each in labelled or ():
        check_labels(each)
    reports = []
    for adapter in adapters.items:
        with progress(adapter.name, len(source)) as advance:
            report = measure(
                adapter,
                source,
                resolution=side,
                crop=crop,
                multiple=multiple,
                max_images=max_images,
                batch_size=batch_size,
                judge=judge,
                inception=weights,
                device=where,
                progress=lambda done, _, advance=advance: advance(done),
            )
        if isinstance(adapter, TokenizerAdapter):
            size = adapter.model.config.image_size if side is None else side
            if labelled is not None:
                report.add("semantics", probe_semantics(adapter.model, *labelled, size))
            if similarity:
                found = measure_similarity(
                    adapter.model, source, size, max_images=max_images, batch_size=batch_size
                )
                report.add("similarity", found)
        reports.append(report)
    records = [asdict(report) for report in reports]
    for record, report in zip(records[1:], reports[1:], strict=True):
        record["minus_first"] = paired_differences(report, reports[0])
    if out is not None:
        text = json.dumps(records, indent=2) + "\n"
        write_file(out, lambda temporary: temporary.write_text(text))
    if json_:
        print_json(records)
    else:
        print_table(comparison_table(reports) if len(reports) > 1 else reports[0].table())
        print()
        print_table(protocol_table(reports))
    failed: dict[str, str] = {k: v for r in reports for k, v in r.figures["failed"].items()}
    for key, reason in failed.items():
        message(f"failed: {key}: {' '.join(reason.split())}")
    if failed:
        raise typer.Exit(SOME_FAILED)
