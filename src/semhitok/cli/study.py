"""`semhitok study`: the paper's comparisons at small scale, each row once, and their tables."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer

from semhitok.cli.console import log_to_stderr, make_table, message, print_table

SURVEY = "survey"


def study(
    rows: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[ROW]...", help="Rows, groups of rows, or 'survey'; all by default."
        ),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option("--data", help="Pictures to train on, as `train` takes them."),
    ] = None,
    photos: Annotated[
        str | None, typer.Option("--photos", help="Held-out pictures for reconstruction.")
    ] = None,
    probe: Annotated[
        tuple[str, str] | None,
        typer.Option("--probe", metavar="TRAIN VAL", help="Labelled pictures for the probe."),
    ] = None,
    judge: Annotated[
        Path | None,
        typer.Option("--judge", help="Folder with SqueezeNet's and LPIPS' weights."),
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", help="Results, a small file each, and their tables.")
    ] = Path("study"),
    runs: Annotated[
        Path | None,
        typer.Option("--runs", help="What trainings write; by default OUT/runs."),
    ] = None,
    scale: Annotated[
        str, typer.Option("--scale", help="Data, steps and width together: smoke, small, medium.")
    ] = "small",
    seeds: Annotated[
        int, typer.Option("--seeds", min=1, help="Of the headline rows; others have one.")
    ] = 3,
    list_: Annotated[bool, typer.Option("--list", help="Name the rows, and stop.")] = False,
) -> None:
    """Train and measure what the paper compares.

    Rows that have a result in OUT are not run again; a stopped study goes on by the same command.
    Without --data the tables are made anew from the results that are there.
    """
    from semhitok.study.rows import find_rows
    from semhitok.study.scales import find_scale

    names = [name for name in rows or () if name != SURVEY]
    chosen = find_rows(names) if names or not rows else []
    surveys = not rows or SURVEY in rows
    size = find_scale(scale)
    if list_:
        print_table(
            make_table(("row", "group", "title"), [(r.name, r.group, r.title) for r in chosen])
        )
        return
    from semhitok.errors import DataError
    from semhitok.study.report import write_report

    if data:
        from semhitok.data.sources import open_source
        from semhitok.evaluate.semantics import check_labels
        from semhitok.study.cost import estimate, pending
        from semhitok.study.measure import Exam
        from semhitok.study.runner import Study

        if photos is None or probe is None:
            raise DataError(
                "--data is given without --photos and --probe; a row is measured on them"
            )
        log_to_stderr(logging.INFO)
        exam = Exam(open_source(photos), open_source(probe[0]), open_source(probe[1]), judge)
        for source in (exam.probe_train, exam.probe_val):
            check_labels(source)
        work = Study(open_source(list(data)), exam, size, out, runs or out / "runs")
        pairs = [
            (row, seed)
            for seed in range(seeds)
            for row in chosen
            if seed == 0 or row.group == "headline"
        ]
        left = pending(work, pairs)
        if left:
            minutes = estimate(work, left) / 60
            message(
                f"{len(pairs)} results asked for; {len(left)} trainings to run, those that others "
                f"start from included: about {minutes:.0f} minutes here"
            )
        for row, seed in pairs:
            work.run(row, seed)
        if surveys:
            work.survey()
    print(write_report(out))
