"""`semhitok evaluate`: the report on reconstruction, rate and codes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Literal

import typer

from semhitok.cli.console import (
    SOME_FAILED,
    BatchOption,
    CropOption,
    DataOption,
    DeviceOption,
    JsonOption,
    ProbeOption,
    check_output_folder,
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
    crop: CropOption = "square",
    max_images: Annotated[
        int | None, typer.Option("--max-images", min=1, help="So many, evenly spaced.")
    ] = None,
    judge: Annotated[
        Path | None,
        typer.Option("--judge", help="Folder with SqueezeNet's and LPIPS' weights."),
    ] = None,
    lpips: Annotated[
        Path | None,
        typer.Option(
            "--lpips", help="Folder with AlexNet's or VGG16's weights and LPIPS' heads for them."
        ),
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
    zero_shot: Annotated[
        str | None,
        typer.Option(
            "--zero-shot",
            metavar="DATA",
            help="Labelled data; accuracy by the words of our models' teachers (CLIP, SigLIP).",
        ),
    ] = None,
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
        Path | None,
        typer.Option("--out", help="A folder for the report with tables, pictures and plots."),
    ] = None,
) -> None:
    """The report on pictures and codes.

    PSNR, SSIM, LPIPS, judge, rFID, rate and use of the codes, and with --probe or --zero-shot what
    the codes know of classes; each with its protocol. All models see the same pictures; a second
    one and more are compared with the first, picture by picture. Codecs get the bytes that the
    first model uses.
    JSON is a list of reports; --out writes it as report.json, with report.md, best and worst
    pictures, and plots of code use.
    """
    if out is not None:
        check_output_folder(out)
    from semhitok.cli.models import find_adapters, pick_device
    from semhitok.data.sources import open_source
    from semhitok.evaluate.adapters import TokenizerAdapter
    from semhitok.evaluate.folder import write_folder
    from semhitok.evaluate.inception import download, find_inception
    from semhitok.evaluate.reconstruction import evaluate as measure
    from semhitok.evaluate.report import Comparison
    from semhitok.evaluate.semantics import check_labels, probe_semantics
    from semhitok.evaluate.similarity import similarity as measure_similarity
    from semhitok.evaluate.zeroshot import check_zero_shot
    from semhitok.evaluate.zeroshot import zero_shot as measure_zero_shot
    from semhitok.extras import require
    from semhitok.images import ImagePolicy

    if out is not None:
        require("matplotlib", "evaluate")
    where = pick_device(device)
    adapters = find_adapters(models, where, decoder)
    side = parse_side(resolution, "--resolution", adapters.image_size)
    multiple = math.lcm(*(adapter.multiple for adapter in adapters.items))
    policy = ImagePolicy(size=side, crop=crop, multiple=multiple)
    weights = download() if inception == "download" else find_inception(inception)
    source = open_source(list(data))
    labelled = None if probe is None else (open_source(probe[0]), open_source(probe[1]))
    for each in labelled or ():
        check_labels(each)
    named = None if zero_shot is None else open_source(zero_shot)
    ours = [each for each in adapters.items if isinstance(each, TokenizerAdapter)]
    if named is not None:
        check_zero_shot(named, [each.model.config.semantic.teacher for each in ours])
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
                lpips=lpips,
                inception=weights,
                device=where,
                progress=lambda done, _, advance=advance: advance(done),
            )
        if isinstance(adapter, TokenizerAdapter):
            size = adapter.model.config.image_size if side is None else side
            if labelled is not None:
                report.add("semantics", probe_semantics(adapter.model, *labelled, size))
            if named is not None:
                found = measure_zero_shot(
                    adapter.model, named, size, max_images=max_images, batch_size=batch_size
                )
                report.add("zero_shot", found)
            if similarity:
                found = measure_similarity(
                    adapter.model, source, size, max_images=max_images, batch_size=batch_size
                )
                report.add("similarity", found)
        reports.append(report)
    comparison = Comparison(reports)
    if out is not None:
        write_folder(out, comparison, adapters.items, source, policy)
    if json_:
        print_json(comparison.to_records())
    else:
        print_table(comparison.table() if len(reports) > 1 else reports[0].table())
        print()
        print_table(comparison.protocol_table())
        if out is not None:
            print(f"\n{out / 'report.md'}")
    failed: dict[str, str] = {k: v for r in reports for k, v in r.figures["failed"].items()}
    for key, reason in failed.items():
        message(f"failed: {key}: {' '.join(reason.split())}")
    if failed:
        raise typer.Exit(SOME_FAILED)
