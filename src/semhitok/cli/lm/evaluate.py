"""`semhitok lm evaluate`: what a multimodal model can do, in figures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from semhitok.cli.console import (
    SOME_FAILED,
    BatchOption,
    DeviceOption,
    GuidanceOption,
    ImageTokenizerOption,
    JsonOption,
    MultimodalArgument,
    SeedOption,
    TemperatureOption,
    TopKOption,
    TopPOption,
    check_output_folder,
    message,
    print_json,
    print_table,
)

if TYPE_CHECKING:
    from semhitok.cli.lm.parts import Part
    from semhitok.lm.assistant import Assistant


def evaluate(
    model: MultimodalArgument,
    naming: Annotated[
        str | None,
        typer.Option(
            "--naming",
            metavar="DATA",
            help="Labelled token shards or pictures (class_name): what is in the picture?",
        ),
    ] = None,
    yes_no: Annotated[
        str | None,
        typer.Option(
            "--yes-no", metavar="DATA", help="The same: is there one? In the manner of POPE."
        ),
    ] = None,
    drawing: Annotated[
        tuple[str, str] | None,
        typer.Option(
            "--drawing",
            metavar="TRAIN VAL",
            help="Labelled pictures: draw their classes, for a classifier that is fitted to TRAIN.",
        ),
    ] = None,
    loss: Annotated[
        list[str] | None,
        typer.Option(
            "--loss",
            metavar="FOLDER",
            help="Sequences of semhitok lm prepare: nats a token; may be repeated.",
        ),
    ] = None,
    max_pictures: Annotated[
        int | None,
        typer.Option("--max-pictures", min=1, help="Ask about so many, evenly spaced."),
    ] = None,
    pack: Annotated[
        int | None,
        typer.Option("--pack", min=1, help="Loss of sequences packed into items of so many."),
    ] = None,
    count: Annotated[int, typer.Option("--count", min=2, help="Pictures to draw.")] = 2000,
    guidance: GuidanceOption = 3.0,
    temperature: TemperatureOption = 1.0,
    top_k: TopKOption = None,
    top_p: TopPOption = 1.0,
    unguided: Annotated[
        bool, typer.Option("--unguided", help="Draw them without guidance too.")
    ] = False,
    unconditional: Annotated[
        bool, typer.Option("--unconditional", help="Draw as many without any text too.")
    ] = False,
    judge: Annotated[
        Path | None, typer.Option("--judge", help="Folder with SqueezeNet's weights, for drawing.")
    ] = None,
    keep: Annotated[
        bool,
        typer.Option("--keep", help="Keep drawn pictures in OUT; so an interrupted run goes on."),
    ] = False,
    seed: SeedOption = 0,
    batch_size: BatchOption = 16,
    tokenizer: ImageTokenizerOption = None,
    device: DeviceOption = None,
    json_: JsonOption = False,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="A folder for the report, answers, and sheets of drawings."),
    ] = None,
) -> None:
    """What a multimodal model can do: naming, yes or no, drawing, held-out loss.

    Each figure with its interval and its protocol. --out writes report.json, report.md, what was
    answered, and best, median and worst drawings. The same seed gives the same figures.
    """
    from semhitok.errors import RangeError

    if naming is None and yes_no is None and drawing is None and not loss:
        raise RangeError("nothing to evaluate; give --naming, --yes-no, --drawing or --loss")
    if keep and (out is None or drawing is None):
        raise RangeError(
            "--keep is for drawings, and keeps them in --out; give --drawing and --out"
        )
    if out is not None:
        check_output_folder(out)
    from semhitok.cli.lm.parts import Drawing, HeldOut, Questions, drawing_sets
    from semhitok.cli.models import load_assistant, pick_device
    from semhitok.lm.evaluation.naming import measure_naming
    from semhitok.lm.evaluation.questions import Exam
    from semhitok.lm.evaluation.yes_no import measure_yes_no
    from semhitok.lm.records import CLASS, Records
    from semhitok.lm.sampling import Sampling

    sampling = Sampling.of_images(temperature, top_k, top_p, guidance=guidance)
    assistant = load_assistant(model, tokenizer, pick_device(device))

    def exam(data: str) -> Exam:
        records = Records(data, [CLASS], assistant.tokenizer.hash)
        return Exam(assistant, records, max_pictures, batch_size, seed)

    # All that can be refused is, before anything is measured.
    parts: dict[str, Part] = {}
    if naming is not None:
        parts["naming"] = Questions("naming", exam(naming), measure_naming)
    if yes_no is not None:
        parts["yes_no"] = Questions("yes or no", exam(yes_no), measure_yes_no)
    if loss:
        parts["loss"] = HeldOut(assistant, loss, pack, batch_size)
    if drawing is not None:
        parts["drawing"] = Drawing(
            assistant,
            drawing,
            judge,
            drawing_sets(sampling, unguided=unguided, unconditional=unconditional),
            count=count,
            seed=seed,
            batch_size=batch_size,
            keep=out / "drawings" if keep and out is not None else None,
        )
    _run(assistant, Path(model).name, parts, batch_size, out, json_)


def _run(
    assistant: Assistant,
    name: str,
    parts: Mapping[str, Part],
    batch_size: int,
    out: Path | None,
    json_: bool,
) -> None:
    from semhitok.evaluate.adapters import describe_device
    from semhitok.evaluate.report import Report, package_versions
    from semhitok.evaluate.sections import INTERVAL, write_sections
    from semhitok.lm.claims import claim_folder

    if out is not None:
        described = {part: each.describe() for part, each in parts.items()}
        claim_folder(out, {"model": assistant.hash, **described})
    protocol = {
        "model": {"name": name, **assistant.describe()},
        "interval": INTERVAL,
        "measured_on": describe_device(assistant.model.device),
        "batch_size": batch_size,
        "versions": package_versions(),
    }
    report, rows, sheets = Report({}, protocol), {}, []
    failed: dict[str, str] = {}
    for part, each in parts.items():
        section, shown = each.measure()
        report.add(part, section.to_record())
        sheets += shown
        failed |= section.failed
        if section.rows:
            rows[part] = section.rows
    if out is not None:
        write_sections(out, name, report, rows, sheets)
    if json_:
        print_json(report.to_record())
    else:
        print_table(report.table())
        if out is not None:
            print(f"\n{out / 'report.md'}")
    for key, why in failed.items():
        message(f"failed: {key}: {why}")
    if failed:
        raise typer.Exit(SOME_FAILED)
