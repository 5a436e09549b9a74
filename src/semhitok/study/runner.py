"""Runs rows in any order, each once: a result is one small file, and a cut run goes on."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import time
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

from semhitok.data.batches import DecodedPictures
from semhitok.data.sources import ImageSource
from semhitok.errors import FormatError
from semhitok.evaluate.adapters import describe_device
from semhitok.evaluate.report import package_versions
from semhitok.files import check_writable, write_file
from semhitok.hub import WEIGHTS, bundled_teacher
from semhitok.model import SemHiTok, Teacher
from semhitok.study.measure import Exam, measure
from semhitok.study.rows import Row, row_named
from semhitok.study.scales import Scale
from semhitok.study.survey import describe, survey, to_json
from semhitok.train.recipe import Recipe
from semhitok.train.run import Run, load_teacher
from semhitok.yaml_recipes import merge, parse, read_recipe

log = logging.getLogger(__name__)

CACHE_BYTES = 8 << 30
SURVEY = "survey.json"
SURVEY_PICTURES = 400


@dataclass(frozen=True)
class Result:
    """One row, trained with one seed and measured."""

    row: str
    seed: int
    identity: str
    """Hash of recipe, data and exam: what decides the figures."""
    figures: dict[str, Any]
    seconds: dict[str, float]
    """Spent on training and on measuring."""
    protocol: dict[str, Any]

    def to_json(self) -> str:
        return json.dumps(self.__dict__, indent=1) + "\n"

    @classmethod
    def read(cls, path: Path) -> Result:
        """Raises:
        FormatError: the file is not a result.
        """
        try:
            return cls(**json.loads(path.read_text()))
        except (OSError, ValueError, TypeError) as error:
            raise FormatError(f"{path} is not a result of a study ({error}); delete it") from error


class Study:
    """Rows at one scale, on one data set, with their results in one folder."""

    def __init__(
        self, source: ImageSource, exam: Exam, scale: Scale, folder: Path, runs: Path
    ) -> None:
        """Args:
        source: pictures to train on.
        folder: `ROW-SEED.json` each; kept small, to be looked at and committed.
        runs: what trainings write, a folder each; may be deleted when all rows are done.

        Raises:
            StorageError: a folder cannot be written.
        """
        self.source, self.exam, self.scale = source, exam, scale
        self.folder, self.runs = folder, runs
        for each in (folder, runs):
            check_writable(each, 1 << 20)

    def result(self, row: Row, seed: int) -> Result | None:
        """What is known of a row already.

        Raises:
            FormatError: it was made from another recipe or other data.
        """
        path = self._path(row, seed)
        if not path.is_file():
            return None
        found = Result.read(path)
        if found.identity != self.identity(row, seed):
            raise FormatError(
                f"{path} is of another recipe or other data; delete it to run the row anew, or use "
                "another --out"
            )
        return found

    def run(self, row: Row, seed: int) -> Result:
        """Train and measure a row, unless that is done."""
        found = self.result(row, seed)
        if found is not None:
            return found
        started = time.monotonic()
        model = self._train(row, seed)
        trained = time.monotonic()
        log.info("row %s, seed %d: measuring", row.name, seed)
        figures = measure(model, load_teacher(self.recipe(row, seed)), self.exam, self.scale)
        result = Result(
            row.name,
            seed,
            self.identity(row, seed),
            figures,
            {"train": trained - started, "measure": time.monotonic() - trained},
            self._protocol(model),
        )
        text = result.to_json()
        write_file(self._path(row, seed), lambda temporary: temporary.write_text(text))
        # What others start from stays; without its recipe the folder is free for a run anew.
        shutil.rmtree(self._run_folder(row, seed) / "checkpoints", ignore_errors=True)
        (self._run_folder(row, seed) / "recipe.yaml").unlink(missing_ok=True)
        return result

    def survey(self) -> Path:
        """How alike the pixels of one code are, unless that is known already: the file of it."""
        path = self.folder / SURVEY
        if not path.is_file():
            teacher = bundled_teacher()
            teachers = {"MobileNetV2": teacher, "untrained": Teacher.from_config(teacher.config)}
            pictures = (
                SURVEY_PICTURES if self.scale.photos >= SURVEY_PICTURES else self.scale.photos
            )
            found = []
            for finding in survey(teachers, self.source, self.exam.photos, pictures=pictures):
                log.info("survey: %s", finding)
                found.append(finding)
            protocol = describe(self.source, self.exam.photos, pictures)
            text = json.dumps(to_json(found, protocol), indent=1) + "\n"
            write_file(path, lambda temporary: temporary.write_text(text))
        return path

    def is_trained(self, row: Row, seed: int) -> bool:
        """Whether its model is there for other rows to start from."""
        return (self._run_folder(row, seed) / "model" / WEIGHTS).is_file()

    def recipe(self, row: Row, seed: int) -> Recipe:
        """Everything that decides the training of a row."""
        data = merge(merge(base_recipe(), self.scale.overlay()), row.overlay(self.scale))
        for stage, other in row.starts.items():
            start = str(self._run_folder(row_named(other), seed) / "model")
            data = merge(data, {stage: {"start": start, "phases": self.scale.phases(0)}})
        return parse(Recipe, {**data, "name": row.name, "seed": seed})

    def identity(self, row: Row, seed: int) -> str:
        """Hash of recipe, data and exam, wherever the folders are."""
        # Without defaults: a key that a later version of recipes has does not make results invalid.
        data = self.recipe(row, seed).model_dump(mode="json", exclude_defaults=True)
        for stage, other in row.starts.items():
            data[stage]["start"] = self.identity(row_named(other), seed)
        exam = {**self._exam, "scale": self.scale.name}
        text = json.dumps([data, self._data, exam], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    @cached_property
    def pictures(self) -> DecodedPictures:
        """The training pictures, decoded once for all rows."""
        return DecodedPictures(self.source, base_recipe()["data"]["scale"][1], CACHE_BYTES)

    @cached_property
    def _data(self) -> dict[str, Any]:
        return {"name": self.source.name, "fingerprint": self.source.fingerprint()}

    @cached_property
    def _exam(self) -> dict[str, Any]:
        return self.exam.describe()

    def _train(self, row: Row, seed: int) -> SemHiTok:
        for other in dict.fromkeys(row.starts.values()):
            if not self.is_trained(row_named(other), seed):
                self._train(row_named(other), seed)
        log.info("row %s, seed %d: training", row.name, seed)
        recipe = self.recipe(row, seed)
        folder = self._run_folder(row, seed)
        folder.mkdir(parents=True, exist_ok=True)
        run = Run(
            recipe,
            self.source,
            folder,
            pictures=self.pictures,
            build=row.build(recipe),
            trainers=row.trainers,
        )
        return run.train().eval()

    def _path(self, row: Row, seed: int) -> Path:
        return self.folder / f"{row.name}-{seed}.json"

    def _run_folder(self, row: Row, seed: int) -> Path:
        return self.runs / f"{row.name}-{seed}"

    def _protocol(self, model: SemHiTok) -> dict[str, Any]:
        return {
            "scale": self.scale.name,
            "data": self._data,
            "exam": self._exam,
            "device": describe_device(model.device),
            "versions": package_versions(),
        }


def base_recipe() -> dict[str, Any]:
    """What all rows share, as plain data."""
    return read_recipe(str(resources.files("semhitok.study") / "base.yaml"))


def results_in(folder: Path) -> list[Result]:
    """All results that a folder holds, in order of row and seed.

    Raises:
        FormatError: a file is not a result.
    """
    return [Result.read(path) for path in sorted(folder.glob("*-[0-9]*.json"))]
