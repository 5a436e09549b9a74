"""A trained multimodal model as one uses it: ask about pictures, draw pictures, talk."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from semhitok import hub
from semhitok.errors import FormatError, NotFoundError
from semhitok.images import reason
from semhitok.lm.drawing import Size
from semhitok.lm.generation import draw, reply
from semhitok.lm.listening import Listener
from semhitok.lm.messages import IMAGE_PLACE, Message
from semhitok.lm.model import UnifiedModel
from semhitok.lm.pictures import Picture
from semhitok.lm.processor import PROCESSOR, UnifiedProcessor
from semhitok.lm.sampling import Sampling
from semhitok.model import SemHiTok
from semhitok.model.tokenizer import tensors_hash

CERTAIN = Sampling.likeliest()
"""For answers: the likeliest words."""


class Assistant:
    """A model with its processor and tokenizer."""

    def __init__(self, model: UnifiedModel, processor: UnifiedProcessor) -> None:
        self.model, self.processor = model, processor

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        tokenizer: str | Path | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> Assistant:
        """Load what training wrote.

        Args:
            name: a folder, or a Hub id.
            tokenizer: where the image tokenizer is, if not under the name that the model knows.
            dtype: of the language model; the tokenizer stays float32.

        Raises:
            NotFoundError: there is no such model, or no such tokenizer.
            FormatError: files are missing or damaged, or it is another tokenizer.
        """
        folder = _folder(name)
        try:
            model = UnifiedModel.from_pretrained(folder, dtype=dtype)
        except (OSError, ValueError) as error:
            raise FormatError(
                f"{folder} holds no multimodal model ({reason(error)}); give the model folder of a "
                "run of semhitok lm train"
            ) from error
        tok = hub.load(tokenizer or model.config.tokenizer_name).to(device)
        torch.nn.Module.to(model, device).train(False)
        return cls(model.attach(tok), UnifiedProcessor.from_pretrained(folder, tok))

    @property
    def tokenizer(self) -> SemHiTok:
        """The image tokenizer."""
        return self.processor.tokenizer

    @functools.cached_property
    def hash(self) -> str:
        """SHA-256 over the weights, by name, and what decides on tokens."""
        identity = json.dumps(self.processor.identity(), sort_keys=True)
        return tensors_hash(self.model.state_dict(), identity.encode())

    def describe(self) -> dict[str, Any]:
        """For protocols."""
        weights = sum(tensor.numel() for tensor in self.model.parameters())
        return {
            "hash": self.hash,
            "parameters": weights,
            "tokenizer": self.tokenizer.config.name,
            "tokenizer_hash": self.tokenizer.hash,
            "picture": "{} x {} patches".format(*self.size),
            "dtype": str(self.model.dtype).removeprefix("torch."),
        }

    @property
    def size(self) -> Size:
        """Height and width in patches of the pictures that it was trained on."""
        return self.processor.pictures.patches

    def ask(
        self,
        picture: Picture,
        question: str,
        *,
        max_new_tokens: int = 128,
        sampling: Sampling = CERTAIN,
        seed: int = 0,
        listener: Listener | None = None,
    ) -> str:
        """The answer to a question about a picture, as text.

        Raises:
            ImageError, NotFoundError: a picture that cannot be read.
        """
        asked = [{"role": "user", "content": f"{IMAGE_PLACE}\n{question}"}]
        (answer,) = self.answer(
            [(asked, [picture])],
            max_new_tokens=max_new_tokens,
            sampling=sampling,
            seed=seed,
            listener=listener,
        )
        return answer

    def answer(
        self,
        conversations: Sequence[tuple[Sequence[Message], Sequence[Picture]]],
        *,
        max_new_tokens: int = 128,
        sampling: Sampling = CERTAIN,
        seed: int = 0,
        listener: Listener | None = None,
    ) -> list[str]:
        """The next turn of each conversation, as text, all at once.

        Args:
            conversations: messages, and a picture for each of their `<image>` places.
            seed: conversation r is answered with seed + r.

        Raises:
            FormatError: not as many places as pictures.
            ImageError, NotFoundError: a picture that cannot be read.
        """
        found = self._reply(conversations, (), max_new_tokens, sampling, seed, listener)
        return ["".join(cast(list[str], pieces)).strip() for pieces in found]

    def draw(
        self,
        prompts: Sequence[str | None],
        *,
        size: Size | None = None,
        sampling: Sampling | None = None,
        seed: int | Sequence[int] = 0,
        listener: Listener | None = None,
    ) -> list[Int64[Tensor, "h w"]]:
        """A picture for each prompt, as ids; `paint` makes pictures of them.

        Args:
            prompts: None draws whatever it likes: the unconditional half of guidance by itself.
            size: height and width in patches; None for that of training.
            seed: prompt r draws with seed + r, or with its own where there is one a prompt.

        Raises:
            RangeError: a side that no marker names, or not as many seeds as prompts.
        """
        unconditional = self.processor.unconditional()
        asked = [
            unconditional if p is None else self.processor.prompt([{"role": "user", "content": p}])
            for p in prompts
        ]
        return draw(
            self.model,
            asked,
            size or self.size,
            sampling=sampling,
            seed=seed,
            unconditional=unconditional,
            listener=listener,
        )

    def paint(self, grid: Int64[Tensor, "h w"]) -> Float[Tensor, "3 height width"]:
        """The picture of a grid of ids, in [0, 1]."""
        return self.tokenizer.decode(grid[None].to(self.tokenizer.device))[0]

    def reply(
        self,
        messages: Sequence[Message],
        pictures: Sequence[Picture] = (),
        *,
        size: Size | None = None,
        max_new_tokens: int = 512,
        sampling: Sampling | None = None,
        seed: int = 0,
        listener: Listener | None = None,
    ) -> list[str | Int64[Tensor, "h w"]]:
        """The next turn of a conversation: texts and pictures in their order.

        Args:
            pictures: one for each `<image>` place of the messages.
            size: of the pictures that it may draw, in patches; None for that of training.

        Raises:
            FormatError: not as many places as pictures.
        """
        (pieces,) = self._reply(
            [(messages, pictures)],
            [size or self.size],
            max_new_tokens,
            sampling or Sampling(),
            seed,
            listener,
        )
        return pieces

    def _reply(
        self,
        conversations: Sequence[tuple[Sequence[Message], Sequence[Picture]]],
        sizes: Sequence[Size],
        max_new_tokens: int,
        sampling: Sampling,
        seed: int,
        listener: Listener | None,
    ) -> list[list[str | Tensor]]:
        replies = reply(
            self.model,
            [self.processor.prompt(*conversation) for conversation in conversations],
            sizes=sizes,
            max_new_tokens=max_new_tokens,
            stop=self.processor.stop,
            sampling=sampling,
            seed=seed,
            unconditional=self.processor.unconditional(),
            listener=listener,
        )
        return [self.processor.decode_pieces(pieces) for pieces in replies]


def _folder(name: str | Path) -> Path:
    """Raises:
    NotFoundError: neither a folder nor a name of the Hub.
    """
    folder = Path(name)
    if folder.is_dir():
        if not (folder / PROCESSOR).is_file():
            raise NotFoundError(
                f"{folder} has no {PROCESSOR}: it is no multimodal model; give the model folder of "
                "a run of semhitok lm train"
            )
        return folder
    if str(name).count("/") != 1 or folder.is_absolute():
        raise NotFoundError(
            f"there is no multimodal model {str(name)!r}; give the model folder of a run of "
            "semhitok lm train, or a Hub id owner/name"
        )
    return hub.snapshot(str(name))
