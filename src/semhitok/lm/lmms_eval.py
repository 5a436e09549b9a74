"""Our models in `lmms-eval`, which finds them by an entry point: `--model semhitok`.

Nothing of `lmms_eval` is imported before it asks for the class, `semhitok.lm.lmms_eval.LmmsModel`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import nn

from semhitok.errors import DataError, RangeError
from semhitok.extras import require
from semhitok.lm.assistant import Assistant
from semhitok.lm.examples import IGNORED
from semhitok.lm.messages import IMAGE_PLACE, Message
from semhitok.lm.sampling import Level, Sampling

EXTRA = "lmms-eval"
MAX_NEW_TOKENS = 128
Chat = tuple[list[Message], list[Image.Image]]


Request = Any
"""Their `Instance`. To generate, its `args` are context, settings, a function from the document to
its pictures, and the document's number, task and split; to score, the continuation stands for the
settings."""


def manifest() -> Any:
    """What the entry point gives: the model's name and where its class is."""
    registry = require("lmms_eval.models.registry_v2", extra=EXTRA)
    return registry.ModelManifest(
        model_id="semhitok", simple_class_path="semhitok.lm.lmms_eval.LmmsModel"
    )


def __getattr__(name: str) -> Any:
    """`LmmsModel`, a subclass of theirs, made when it is asked for."""
    if name != "LmmsModel":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    theirs = require("lmms_eval.api.model", extra=EXTRA).lmms
    return type(name, (Examinee, theirs), {"__module__": __name__})


class Examinee:
    """Answers the requests of `lmms_eval`, pictures and text only."""

    is_simple = True
    task_dict: dict[str, Any]
    cache_hook: Any

    def __init__(
        self,
        pretrained: str,
        tokenizer: str | None = None,
        device: str | None = None,
        dtype: str = "float32",
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
    ) -> None:
        """`--model_args`: `pretrained=FOLDER,tokenizer=NAME,dtype=bfloat16`; the others are
        options of `lmms_eval` itself.

        Raises:
            NotFoundError, FormatError: there is no such model.
            RangeError: a dtype or batch size that is none.
        """
        super().__init__()
        if dtype not in ("float32", "bfloat16", "float16"):
            raise RangeError(f"dtype is {dtype!r}; allowed: float32, bfloat16, float16")
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise RangeError(f"batch_size is {batch_size!r}; a number from 1 on is needed")
        from accelerate import Accelerator

        self.accelerator = Accelerator()
        self._rank = self.accelerator.process_index
        self._world_size = self.accelerator.num_processes
        many = self._world_size > 1
        self.device = torch.device(self.accelerator.device if many else device or "cpu")
        self.batch_size = int(batch_size)
        self.assistant = Assistant.from_pretrained(
            pretrained, tokenizer=tokenizer, device=self.device, dtype=getattr(torch, dtype)
        )

    def generate_until(self, requests: Sequence[Request]) -> list[str]:
        """An answer to each request; those with the same settings several at a time.

        Raises:
            DataError: a document that gives something else than pictures.
            RangeError: beams, or settings that sampling refuses.
        """
        answers: dict[int, str] = {}
        for numbers in _alike([request.args[1] for request in requests], self.batch_size):
            batch = [requests[number].args for number in numbers]
            settings = batch[0][1]
            replies = self.assistant.answer(
                [self._chat(args[0], *args[2:]) for args in batch],
                max_new_tokens=int(settings.get("max_new_tokens") or MAX_NEW_TOKENS),
                sampling=_sampling(settings),
            )
            for number, args, said in zip(numbers, batch, replies, strict=True):
                answers[number] = bare(_until(said, settings.get("until")))
                self.cache_hook.add_partial("generate_until", args[:2], answers[number])
        return [answers[number] for number in range(len(requests))]

    @torch.inference_mode()
    def loglikelihood(self, requests: Sequence[Request]) -> list[tuple[float, bool]]:
        """Of each continuation, its end of turn left out: the sum of its losses in nats, and
        whether it is the likeliest at each of its tokens.

        The loss, not its negative: `lmms_eval` takes the choice with the smallest number.

        Raises:
            DataError: a document that gives something else than pictures.
        """
        found = []
        for request in requests:
            context, target, *where = request.args
            target = target if isinstance(target, str) else target(self._document(*where[1:]))
            messages, pictures = self._chat(context, *where)
            found.append(self._score([*messages, _says("assistant", target)], pictures))
        return found

    def generate_until_multi_round(self, requests: Sequence[Request]) -> list[str]:
        """Raises:
        DataError: always.
        """
        raise DataError("semhitok answers single rounds only; leave out tasks of several rounds")

    def _chat(
        self,
        context: str,
        pictures_of: Callable[[Any], Iterable[Any]],
        number: int,
        task: str,
        split: str,
    ) -> Chat:
        """Pictures come first where the context has not as many places for them as there are."""
        pictures = list(pictures_of(self._document(number, task, split)) or ())
        for picture in pictures:
            if not isinstance(picture, Image.Image):
                raise DataError(
                    f"{task} has a {type(picture).__name__} in document {number}; semhitok reads "
                    "pictures only: choose tasks of pictures"
                )
        if context.count(IMAGE_PLACE) == len(pictures):
            return [_says("user", context)], pictures
        text = context.replace(IMAGE_PLACE, "").strip()
        return [_says("user", f"{IMAGE_PLACE}\n" * len(pictures) + text)], pictures

    def _document(self, number: int, task: str, split: str) -> Any:
        return self.task_dict[task][split][number]

    def _score(self, messages: list[Message], pictures: list[Image.Image]) -> tuple[float, bool]:
        model = self.assistant.model
        example = self.assistant.processor.example(messages, pictures)
        labels = example.labels
        labels[labels == self.assistant.processor.stop[0]] = IGNORED
        hidden = model(
            example.input_ids[None].to(model.device),
            logits_to_keep=0,
            read_out=nn.Identity(),
            use_cache=False,
        ).logits[0]
        learned = (labels[1:] != IGNORED).to(model.device)
        hidden, targets = hidden[:-1][learned], labels[1:].to(model.device)[learned]
        likeliest = model.log_probs(hidden).argmax(dim=-1)
        return float(model.losses(hidden, targets).sum()), bool((likeliest == targets).all())


def bare(answer: str) -> str:
    """An answer of one word without its full stop: tasks as POPE compare it to `yes` as a whole."""
    word = answer.strip()
    return word.removesuffix(".") if len(word.split()) == 1 else word


def _alike(settings: Sequence[Mapping[str, Any]], most: int) -> list[list[int]]:
    """Batches of numbers of equal settings, in order."""
    groups: dict[str, list[int]] = {}
    for number, each in enumerate(settings):
        groups.setdefault(json.dumps(each, sort_keys=True, default=str), []).append(number)
    return [
        numbers[start : start + most]
        for numbers in groups.values()
        for start in range(0, len(numbers), most)
    ]


def _sampling(settings: Mapping[str, Any]) -> Sampling:
    if int(settings.get("num_beams") or 1) > 1:
        raise RangeError(f"num_beams is {settings['num_beams']}; semhitok has no beams: use 1")
    temperature = float(settings.get("temperature") or 0)
    top_p = settings.get("top_p")
    return Sampling(text=Level(temperature, top_p=1.0 if not top_p else float(top_p)))


def _until(answer: str, stops: str | Sequence[str] | None) -> str:
    """What comes before the first of the stops."""
    for stop in [stops] if isinstance(stops, str) else stops or ():
        if stop:
            answer = answer.split(stop)[0]
    return answer


def _says(role: str, text: str) -> Message:
    return {"role": role, "content": text}
