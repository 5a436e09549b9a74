"""What is in the picture? Top-1 by free text."""

from __future__ import annotations

import torch

from semhitok.lm.evaluation.class_names import MATCHING, ClassNames
from semhitok.lm.evaluation.questions import Exam
from semhitok.lm.evaluation.section import Interval, Section
from semhitok.lm.records import class_of
from semhitok.lm.tasks import Name

MAX_NEW_TOKENS = 32


def measure_naming(exam: Exam, interval: Interval) -> Section:
    """How often the model names the class of a picture, with the questions of `tasks.Name`.

    Figures: `top1`; `names_none`, the share of answers that name no class of the data set, and
    `names_several`, of those that name more than one: both count as wrong.

    Raises:
        DataError: no labels, or no picture could be read.
    """
    names = ClassNames(exam.classes())
    failed: dict[str, str] = {}
    rows = []
    ask = Name(exam.seed)
    for record, ((asked, said),) in exam.answers(
        lambda record: list(ask(record)), failed, max_new_tokens=MAX_NEW_TOKENS
    ):
        (true,) = class_of(record.about)
        rows.append(
            {
                "key": record.key,
                "asked": asked,
                "answer": said,
                "named": sorted(names.named_in(said)),
                "class": true,
            }
        )

    def share(hits: list[bool]) -> dict[str, float] | None:
        return interval(torch.tensor(hits).double(), torch.ones(len(rows)).double())

    figures = {
        "pictures": len(rows),
        "classes": len(names.names),
        "top1": share([row["named"] == [row["class"]] for row in rows]),
        "names_none": share([not row["named"] for row in rows]),
        "names_several": share([len(row["named"]) > 1 for row in rows]),
    }
    protocol = exam.describe(len(rows) + len(failed))
    protocol |= {"max_new_tokens": MAX_NEW_TOKENS, "matching": MATCHING}
    return Section(figures, protocol, rows, failed)
