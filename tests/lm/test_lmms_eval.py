"""The plug-in of lmms-eval against a stand-in for its interface (version 0.7)."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import pytest
import torch
from PIL import Image

from semhitok.errors import DataError, MissingExtraError, RangeError
from semhitok.lm import lmms_eval
from semhitok.lm.assistant import Assistant

POPE = {"max_new_tokens": 8, "temperature": 0, "top_p": 1.0, "num_beams": 1, "do_sample": False}


@dataclass
class Manifest:
    model_id: str
    simple_class_path: str


class Theirs:
    """The base class."""

    def __init__(self) -> None:
        self._rank, self._world_size, self.task_dict = 5, 7, dict[str, Any]()
        self.cache_hook = Hook()

    @property
    def rank(self) -> int:
        return self._rank


class Hook:
    def __init__(self) -> None:
        self.kept: list[tuple[Any, ...]] = []

    def add_partial(self, *what: Any) -> None:
        self.kept.append(what)


@dataclass
class Instance:
    args: tuple[Any, ...]


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["lmms_eval", "lmms_eval.api", "lmms_eval.models"]
    modules = {name: ModuleType(name) for name in names}
    modules["lmms_eval.api.model"] = model = ModuleType("model")
    modules["lmms_eval.models.registry_v2"] = registry = ModuleType("registry_v2")
    model.lmms, registry.ModelManifest = Theirs, Manifest  # type: ignore[attr-defined]
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)


@pytest.fixture
def examinee(
    installed: None, assistant: Assistant, monkeypatch: pytest.MonkeyPatch
) -> lmms_eval.Examinee:
    monkeypatch.setattr(Assistant, "from_pretrained", lambda *_, **__: assistant)
    made: lmms_eval.Examinee = lmms_eval.LmmsModel("folder", batch_size="2", device="cpu")
    pictures = [Image.new("RGB", (20, 20), (60 * n, 200, 90)) for n in range(3)]
    made.task_dict["pope"] = {"test": [{"image": p, "answer": "a dog"} for p in pictures]}
    return made


def pictures_of(document: dict[str, Any]) -> list[Image.Image]:
    return [document["image"]]


def ask(number: int, context: str = "Is there a dog?", **settings: Any) -> Instance:
    return Instance((context, {**POPE, **settings}, pictures_of, number, "pope", "test"))


def test_how_they_find_it(installed: None) -> None:
    manifest = lmms_eval.manifest()
    assert manifest == Manifest("semhitok", "semhitok.lm.lmms_eval.LmmsModel")
    module, name = manifest.simple_class_path.rsplit(".", 1)
    made = getattr(sys.modules[module], name)
    assert issubclass(made, Theirs) and made.is_simple
    with pytest.raises(AttributeError, match="has no attribute 'Other'"):
        _ = lmms_eval.Other


def test_the_entry_point_is_declared() -> None:
    import tomllib
    from pathlib import Path

    project = Path(__file__).parents[2] / "pyproject.toml"
    declared = tomllib.loads(project.read_text())["project"]["entry-points"]["lmms_eval.models"]
    assert declared == {"semhitok": "semhitok.lm.lmms_eval:manifest"}


def test_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lmms_eval", None)
    for what in (lmms_eval.manifest, lambda: lmms_eval.LmmsModel):
        with pytest.raises(MissingExtraError, match=r"pip install 'semhitok\[lmms-eval\]'"):
            what()


def test_answers_are_the_models_own_in_order(examinee: lmms_eval.Examinee) -> None:
    own = examinee.assistant
    requests = [ask(0), ask(1, max_new_tokens=3), ask(2), ask(1), ask(0, "What is <image>?")]
    found = examinee.generate_until(requests)
    images = [document["image"] for document in examinee.task_dict["pope"]["test"]]
    wanted = [
        own.ask(images[0], "Is there a dog?", max_new_tokens=8),
        own.ask(images[1], "Is there a dog?", max_new_tokens=3),
        own.ask(images[2], "Is there a dog?", max_new_tokens=8),
        own.ask(images[1], "Is there a dog?", max_new_tokens=8),
        own.answer(
            [([{"role": "user", "content": "What is <image>?"}], [images[0]])], max_new_tokens=8
        )[0],
    ]
    assert found == list(map(lmms_eval.bare, wanted))
    kept = examinee.cache_hook.kept
    assert len(kept) == 5 and kept[0] == ("generate_until", requests[0].args[:2], found[0])
    assert examinee.rank == 0 and examinee.batch_size == 2  # type: ignore[attr-defined]


def test_stops_and_full_stops(
    examinee: lmms_eval.Examinee, monkeypatch: pytest.MonkeyPatch
) -> None:
    def say(text: str, **settings: Any) -> str:
        monkeypatch.setattr(Assistant, "answer", lambda *_, **__: [text])
        (answer,) = examinee.generate_until([ask(0, **settings)])
        return answer

    assert say("Yes.") == "Yes" and say("It is.") == "It is."
    assert say("Yes\n\nNo", until=["\n\n"]) == "Yes" and say("a;b", until=";") == "a"


@torch.no_grad()
def test_scores_are_losses_of_the_continuation(examinee: lmms_eval.Examinee) -> None:
    own = examinee.assistant
    choices: list[Any] = [" a dog", lambda document: document["answer"], "No."]
    requests = [Instance(("What?", choice, pictures_of, 1, "pope", "test")) for choice in choices]
    (first, _), (second, _), (third, likeliest) = examinee.loglikelihood(requests)
    image = examinee.task_dict["pope"]["test"][1]["image"]
    talk = [{"role": "user", "content": "<image>\nWhat?"}, {"role": "assistant", "content": "No."}]
    example = own.processor.example(talk, [image])
    log_probs = own.model(example.input_ids[None], logits_to_keep=0).logits[0, :-1]
    ((start, stop),) = example.learned
    places = torch.arange(start, stop - 1)  # without the end of the turn
    wanted = -log_probs[places - 1, example.input_ids[places]].sum()
    assert third == pytest.approx(float(wanted), rel=1e-5) and third > 0 and not likeliest
    assert first != third and second > 0


@pytest.mark.parametrize(
    "request_, kind, words",
    [
        (ask(0, num_beams=4), RangeError, "num_beams is 4; semhitok has no beams: use 1"),
        (
            Instance(("What?", POPE, lambda document: ["film.mp4"], 0, "pope", "test")),
            DataError,
            "pope has a str in document 0; semhitok reads pictures only",
        ),
    ],
)
def test_what_it_cannot_do(
    examinee: lmms_eval.Examinee, request_: Instance, kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind, match=words):
        examinee.generate_until([request_])
    with pytest.raises(DataError, match="single rounds only"):
        examinee.generate_until_multi_round([])


@pytest.mark.parametrize(
    "options, words",
    [({"dtype": "int8"}, "dtype is 'int8'; allowed"), ({"batch_size": "auto"}, "from 1 on")],
)
def test_arguments(installed: None, options: dict[str, Any], words: str) -> None:
    make: Callable[..., Any] = lmms_eval.LmmsModel
    with pytest.raises(RangeError, match=words):
        make("folder", **options)
