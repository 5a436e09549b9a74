"""Is there one in the picture? Yes or no, in the manner of POPE (arXiv:2305.10355)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from semhitok.lm.evaluation.class_names import words_of
from semhitok.lm.evaluation.questions import Exam
from semhitok.lm.evaluation.section import Interval, Section
from semhitok.lm.tasks import IsThere

MAX_NEW_TOKENS = 8
KINDS = ("present", "random", "frequent")
"""A picture's own class; any other; a frequent other."""
SETTINGS = {"random": ("random",), "frequent": ("frequent",), "all": ("random", "frequent")}
"""Each asks for what is there as often as for what is not."""
PROTOCOL = (
    "three questions a picture: its class, any other class, one of the most frequent others; "
    "'random' and 'frequent' are present against that kind, 'all' is both, with each present "
    "question counted twice: half of the questions is always to be answered with yes"
)
MATCHING = "the answer's first word, in lower case, is yes or no; anything else is wrong"

Said = Literal["yes", "no", "neither"]


def measure_yes_no(exam: Exam, interval: Interval) -> Section:
    """How well the model tells what is there from what is not, with `tasks.IsThere`'s questions.

    Figures, for each of SETTINGS: `accuracy`, `precision`, `recall`, `f1`, `share_yes`, and
    `neither`, the share of answers that are neither yes nor no; and `right`, the share of right
    answers to each kind of question. Intervals are over pictures, whose questions stay together.

    Raises:
        DataError: no labels, fewer than two classes, or no picture could be read.
    """
    ask = IsThere(exam.classes(), exam.seed)
    failed: dict[str, str] = {}
    rows = []
    for record, answered in exam.answers(
        lambda record: [question for each in ask.every(record) for question in each],
        failed,
        max_new_tokens=MAX_NEW_TOKENS,
    ):
        for kind, (asked, said) in zip(KINDS, answered, strict=True):
            heard = said_in(said)
            rows.append(
                {"key": record.key, "kind": kind, "asked": asked, "answer": said, "said": heard}
            )
    figures = figures_of([row["said"] for row in rows], interval)
    protocol = exam.describe(len(rows) // len(KINDS) + len(failed))
    protocol |= {
        "max_new_tokens": MAX_NEW_TOKENS,
        "questions": PROTOCOL,
        "frequent": f"the {ask.FREQUENT:.0%} most frequent classes, at least two",
        "matching": MATCHING,
    }
    return Section(figures, protocol, rows, failed)


def said_in(answer: str) -> Said:
    """What an answer says."""
    first = next(iter(words_of(answer)), "")
    return first if first in ("yes", "no") else "neither"  # type: ignore[return-value]


def figures_of(said: Sequence[Said], interval: Interval) -> dict[str, Any]:
    """Args:
    said: answers to the questions of KINDS, picture after picture.
    """

    def told(word: Said) -> dict[str, Float[Tensor, " n"]]:
        table = torch.tensor([s == word for s in said]).view(-1, len(KINDS)).double()
        return dict(zip(KINDS, table.T, strict=True))

    yes, no, neither = told("yes"), told("no"), told("neither")
    one = torch.ones_like(yes["present"])
    right = {"present": yes["present"], "random": no["random"], "frequent": no["frequent"]}
    figures: dict[str, Any] = {"pictures": len(one), "questions": len(said)}
    figures["right"] = {kind: interval(hits, one) for kind, hits in right.items()}
    for name, absent in SETTINGS.items():
        half = len(absent) * one
        true_yes = len(absent) * yes["present"]
        false_yes = torch.stack([yes[kind] for kind in absent]).sum(dim=0)
        hits = true_yes + torch.stack([no[kind] for kind in absent]).sum(dim=0)
        mute = len(absent) * neither["present"] + sum(neither[kind] for kind in absent)
        figures[name] = {
            "accuracy": interval(hits, 2 * half),
            "precision": interval(true_yes, true_yes + false_yes),
            "recall": interval(true_yes, half),
            "f1": interval(2 * true_yes, true_yes + false_yes + half),
            "share_yes": interval(true_yes + false_yes, 2 * half),
            "neither": interval(mute, 2 * half),
        }
    return figures
