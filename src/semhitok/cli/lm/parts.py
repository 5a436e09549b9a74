"""The parts of `semhitok lm evaluate`: what the multimodal model does, with what grades it."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from semhitok.cli.console import progress
from semhitok.data.sources import ImageSource, open_source
from semhitok.errors import NotFoundError
from semhitok.evaluate.drawings import TOP, Grader, class_names, sample_sheet
from semhitok.evaluate.markdown import Illustration
from semhitok.evaluate.metrics import summarize_ratio
from semhitok.lm.assistant import Assistant
from semhitok.lm.evaluation.class_drawings import ClassDrawings
from semhitok.lm.evaluation.held_out import measure_loss
from semhitok.lm.evaluation.questions import Exam
from semhitok.lm.evaluation.section import Interval, Section
from semhitok.lm.picture_sets import Folder, Memory, Store, Wanted, draw_missing
from semhitok.lm.processor import check_identity
from semhitok.lm.sampling import Sampling
from semhitok.lm.sequences import Sequences
from semhitok.model.lpips import find_judge, lpips_hash

Sheet = tuple[Illustration, Image.Image]


class Part(ABC):
    """One of the things that are measured."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """What decides on the figures, beside the model."""

    @abstractmethod
    def measure(self) -> tuple[Section, list[Sheet]]:
        """The figures, and pictures to look at."""


@dataclass(frozen=True)
class Questions(Part):
    """Naming, or yes or no."""

    name: str
    exam: Exam
    figures: Callable[[Exam, Interval], Section]

    def describe(self) -> dict[str, Any]:
        limit = self.exam.max_pictures
        data = self.exam.records.fingerprint
        return {"data": data, "max_pictures": limit, "seed": self.exam.seed}

    def measure(self) -> tuple[Section, list[Sheet]]:
        everything = len(self.exam.records)
        with progress(self.name, min(everything, self.exam.max_pictures or everything)) as advance:
            exam = dataclasses.replace(self.exam, advance=advance)
            return self.figures(exam, summarize_ratio), []


class HeldOut(Part):
    """Loss on prepared sequences."""

    def __init__(
        self, assistant: Assistant, folders: list[str], length: int | None, batch_size: int
    ) -> None:
        """Raises:
        NotFoundError, FormatError: no prepared folders, or of another tokenizer.
        """
        self.assistant, self.length, self.batch_size = assistant, length, batch_size
        self.sequences = Sequences(folders)
        ours = assistant.processor.identity()
        check_identity(ours, self.sequences.identity, self.sequences.name)

    def describe(self) -> dict[str, Any]:
        return {"data": self.sequences.fingerprint, "length": self.length}

    def measure(self) -> tuple[Section, list[Sheet]]:
        with progress("loss", len(self.sequences)) as advance:
            section = measure_loss(
                self.assistant.model,
                self.sequences,
                summarize_ratio,
                length=self.length,
                batch_size=self.batch_size,
                advance=advance,
            )
        return section, []


class Drawing(Part):
    """Pictures of classes under a classifier that is fitted to photos."""

    def __init__(
        self,
        assistant: Assistant,
        data: tuple[str, str],
        judge: Path | None,
        sets: dict[str, Sampling],
        *,
        count: int,
        seed: int,
        batch_size: int,
        keep: Path | None,
    ) -> None:
        """Args:
            data: labelled photos: to fit the classifier to, and to compare with.
            sets: how each set is drawn; that of the name `unconditional` without a text.
            keep: where pictures are kept, if they are.

        Raises:
            NotFoundError: no judge, or no such data.
            DataError: data without class names, or of different classes.
        """
        self.assistant, self.sets, self.seed, self.batch_size = assistant, sets, seed, batch_size
        self.train, self.val = (open_source(path) for path in data)
        self.drawings = ClassDrawings(class_names(self.train, self.val), count)
        self.judge = _find_judge(judge)
        self.store: Store = Memory() if keep is None else Folder(keep)

    def describe(self) -> dict[str, Any]:
        return {
            "train": self.train.fingerprint(),
            "val": self.val.fingerprint(),
            "judge": lpips_hash(self.judge),
            "sets": {name: dataclasses.asdict(sampling) for name, sampling in self.sets.items()},
            "count": self.drawings.count,
            "seed": self.seed,
        }

    def measure(self) -> tuple[Section, list[Sheet]]:
        grader = self._grader(self.train, self.val)
        figures = {"photos": grader.grade_photos().figures}
        rows: list[dict[str, Any]] = []
        sheets: list[Sheet] = []
        for name, sampling in self.sets.items():
            named = name != "unconditional"
            wanted = self.drawings.wanted(name, of_classes=named)
            self._draw(name, wanted, sampling)
            labels = self.drawings.labels if named else None
            grades = grader.grade((self.store.get(one.file) for one in wanted), labels)
            figures[name] = grades.figures
            if named:
                names = [grader.names[label] for label in self.drawings.labels]
                rows += [
                    {"set": name, "file": one.file, "prompt": one.prompt, "probability": own}
                    for one, own in zip(wanted, grades.own, strict=True)
                ]
                sheets.append(self._sheet(name, wanted, names, grades.own))
        protocol = {
            "pictures": self.assistant.processor.pictures.describe(),
            "prompts": "a photo of each class, classes evenly",
            **grader.describe(),
            **self.describe(),
        }
        protocol |= {"train": grader.train.describe(), "val": grader.val.describe()}
        return Section(
            figures, protocol, rows, {**grader.train.failed, **grader.val.failed}
        ), sheets

    def _grader(self, train: ImageSource, val: ImageSource) -> Grader:
        with progress("photos", len(train) + len(val)) as advance:
            return Grader(
                self.judge,
                train,
                val,
                self.assistant.processor.pictures.image,
                device=self.assistant.model.device,
                advance=advance,
            )

    def _draw(self, name: str, wanted: list[Wanted], sampling: Sampling) -> None:
        with progress(name, len(wanted)) as advance:
            draw_missing(
                self.assistant,
                wanted,
                self.store,
                sampling=sampling,
                seed=self.seed,
                batch_size=self.batch_size,
                advance=advance,
            )

    def _sheet(self, name: str, wanted: list[Wanted], names: list[str], own: list[float]) -> Sheet:
        caption = (
            f"Of {len(wanted)} pictures those whose class the classifier finds most, middling and "
            f"least probable; top-{TOP} and top-1 are above."
        )
        illustration = Illustration(f"Drawn, {name}", f"drawn-{name}.png", caption)
        return illustration, sample_sheet(lambda n: self.store.get(wanted[n].file), names, own)


def drawing_sets(sampling: Sampling, *, unguided: bool, unconditional: bool) -> dict[str, Sampling]:
    """How pictures are drawn: as asked, and the same without guidance, and without a text."""
    plain = dataclasses.replace(sampling, guidance=1.0)
    sets = {} if sampling.guidance == 1 else {"guided": sampling}
    if unguided or not sets:
        sets["unguided"] = plain
    if unconditional:
        sets["unconditional"] = plain
    return sets


def _find_judge(folder: Path | None) -> Path:
    found = find_judge(folder)
    if found is None:
        raise NotFoundError(
            "drawings are graded by features of the judge, and its weights are nowhere; give "
            "--judge FOLDER, or set SEMHITOK_JUDGES"
        )
    lpips_hash(found)  # says which file is missing
    return found
