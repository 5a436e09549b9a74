"""Messages and pictures in, tokens out, and back: what stands between users and the model."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Int64
from torch import Tensor

import semhitok
from semhitok.errors import FormatError, NotFoundError
from semhitok.files import storage_error, write_file
from semhitok.images import reason
from semhitok.lm.chat import ChatTemplate, Script
from semhitok.lm.examples import Example, Span, runs
from semhitok.lm.messages import Message, Turn, to_turns
from semhitok.lm.model import hash_of
from semhitok.lm.pictures import Picture, PictureReader, Size
from semhitok.lm.vocabulary import Piece, Vocabulary
from semhitok.model.tokenizer import SemHiTok

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROCESSOR = "processor.json"
FORMAT_VERSION = 1


class UnifiedProcessor:
    """A text tokenizer, an image tokenizer and their one vocabulary.

    Text is tokenized in the runs that pictures leave, each by itself and as a whole; special tokens
    are those that the chat template writes. No image id ever becomes a string.
    """

    def __init__(
        self,
        text: PreTrainedTokenizerBase,
        vocabulary: Vocabulary,
        tokenizer: SemHiTok,
        *,
        size: Size = None,
    ) -> None:
        """Args:
            text: any fast tokenizer of `transformers`.
            tokenizer: loaded whole, as its hash is needed.
            size: what pictures become: the short side in pixels of their middle square, or (height,
                width) in patches; None for the tokenizer's own image_size. Grids stay as they are.

        Raises:
            MissingExtraError: jinja2 is not installed.
            FormatError: parts that do not belong together, a slow text tokenizer, or a chat
                template that no reply can be learned with.
            RangeError: a size that is impossible.
        """
        _check_parts(text, vocabulary, tokenizer)
        self.text, self.vocabulary, self.tokenizer = text, vocabulary, tokenizer
        self.template = ChatTemplate(text)
        self.pictures = PictureReader(tokenizer, vocabulary, size)
        self.tokenizer_hash = hash_of(tokenizer)
        probe = self.example([{"role": "user", "content": "a"}, _says("a")])
        self.stop: tuple[int, ...] = (int(probe.input_ids[-1]),)
        """Text ids that end a reply."""

    @classmethod
    def for_language(
        cls, language: str | Path, tokenizer: SemHiTok, *, max_side: int = 64, size: Size = None
    ) -> UnifiedProcessor:
        """For a language model of `transformers` that is to be united with the tokenizer.

        Args:
            language: a folder, or a name of the Hub: its config and text tokenizer are read.

        Raises:
            NotFoundError: it cannot be had.
            RangeError: its text tokenizer has more ids than it has rows.
        """
        from transformers import AutoConfig, AutoTokenizer

        try:
            config = AutoConfig.from_pretrained(language).get_text_config()
            text = AutoTokenizer.from_pretrained(language)
        except (OSError, ValueError) as error:
            raise NotFoundError(
                f"no language model {str(language)!r} ({reason(error)}); give a folder with a "
                "config.json and a text tokenizer, or a name of the Hub"
            ) from error
        vocabulary = Vocabulary(
            text_size=config.vocab_size,
            text_length=len(text),
            num_semantic=tokenizer.config.semantic.num_codes,
            num_pixel=tokenizer.config.pixel.num_codes,
            max_side=max_side,
        )
        return cls(text, vocabulary, tokenizer, size=size)

    # -- tokens --------------------------------------------------------------------------------

    def prompt(
        self, messages: Sequence[Message], pictures: Sequence[Picture] = ()
    ) -> Int64[Tensor, " t"]:
        """Tokens of what comes before the assistant's next reply: for `draw` and `reply`.

        Args:
            pictures: one for each `<image>` place, in order.

        Raises:
            FormatError: not as many places as pictures, or what the chat template refuses.
            ImageError, NotFoundError, ShapeError, RangeError: a picture that cannot be used.
            IdError: a grid with an id outside [0, K * m).
        """
        turns = to_turns(messages, len(pictures))
        script = self.template.write(turns, prompt=True)
        return self._tokens(script, self.pictures.grids(pictures))[0]

    def unconditional(self) -> Int64[Tensor, " t"]:
        """The prompt of guidance's other half: a drawing's without the text that is drawn.

        What is dropped in training leaves this, and nothing else.
        """
        return self._unconditional

    def example(self, messages: Sequence[Message], pictures: Sequence[Picture] = ()) -> Example:
        """A conversation to learn from: what the assistant says, pictures with their markers and
        the end-of-turn token included.

        Raises:
            FormatError: as `prompt`; or no reply at the end, a reply whose tokens do not follow
                those of its prompt, or a drawing whose text does not leave the unconditional one.
        """
        turns = to_turns(messages, len(pictures))
        script = self.template.write(turns, prompt=False)
        tokens, places = self._tokens(script, self.pictures.grids(pictures))
        learned = torch.zeros(len(tokens), dtype=torch.bool)
        for start, stop in script.replies:
            if bool(((places[:, 0] < start) & (places[:, 1] > start)).any()):
                raise FormatError(
                    f"the tokenizer joins the reply {script.text[start:stop]!r:.80} with what is "
                    "before it, so that it would not follow its prompt; change it, or give the "
                    "tokenizer a chat_template whose generation prompt ends in no blank"
                )
            learned |= _within(places, (start, stop))
        dropped = self._dropped(script, tokens, places) if _is_drawing(turns) else None
        return Example(tokens, runs(learned), dropped)

    def plain(self, text: str) -> Example:
        """Text as it is, without a chat template, all of it learned; with the special tokens that
        the text tokenizer itself adds, and an end-of-sequence token."""
        ids = self.text(text, verbose=False)["input_ids"]
        end = self.text.eos_token_id
        if end is not None and ids[-1:] != [end]:
            ids = [*ids, end]
        return Example(torch.tensor(ids, dtype=torch.int64), ((0, len(ids)),) if ids else ())

    def decode(self, tokens: Int64[Tensor, " t"]) -> list[str | Int64[Tensor, "h w"]]:
        """Text, without its special tokens, and grids of the tokenizer's ids, in their order.

        Raises:
            IdError: a token outside the vocabulary.
            FormatError: a picture is cut off, or otherwise broken.
        """
        return self.decode_pieces(self.vocabulary.parse(tokens))

    def decode_pieces(self, pieces: Sequence[Piece]) -> list[str | Int64[Tensor, "h w"]]:
        """As `decode`, of what `reply` gives."""
        return [self._string(piece) if piece.ndim == 1 else piece for piece in pieces]

    def _string(self, ids: Tensor) -> str:
        return str(
            self.text.decode(
                ids.tolist(), skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
        )

    def _tokens(self, script: Script, grids: Sequence[Tensor]) -> tuple[Tensor, np.ndarray]:
        """Tokens, and where in the script's text each of them starts and stops, (t, 2)."""
        pieces: list[Tensor] = []
        places: list[np.ndarray] = []
        done = 0
        for number, run in enumerate(script.text.split(script.picture)):
            if number:
                grid = grids[number - 1]
                pieces.append(grid)
                places.append(np.tile([done, done + 1], (grid.numel() + 4, 1)))
                done += 1
            if run:
                found = self.text(
                    run, add_special_tokens=False, return_offsets_mapping=True, verbose=False
                )
                pieces.append(torch.tensor(found["input_ids"], dtype=torch.int64))
                places.append(np.array(found["offset_mapping"]).reshape(-1, 2) + done)
                done += len(run)
        return self.vocabulary.join(pieces), np.concatenate(places)

    @functools.cached_property
    def _unconditional(self) -> Tensor:
        script = self.template.write([Turn("user", ("a",))], prompt=True)
        tokens, places = self._tokens(script, [])
        return tokens[~_within(places, _asked(script))]

    def _dropped(self, script: Script, tokens: Tensor, places: np.ndarray) -> Span:
        """The tokens of the text that is drawn."""
        ((start, stop),) = runs(_within(places, _asked(script))) or ((0, 0),)
        before = int(_within(places, script.replies[0]).nonzero()[0])
        left = torch.cat([tokens[:start], tokens[stop:before]])
        if not torch.equal(left, self._unconditional):
            text = script.text[slice(*script.asked[0])]
            raise FormatError(
                f"the text to draw, {text!r}, is empty, has blanks at its end, or is joined by the "
                "tokenizer with what the chat template puts around it, so that without it the "
                "unconditional prompt would not be left; change it, or give the tokenizer a "
                "chat_template that ends the user's turns with a special token"
            )
        return start, stop

    # -- saving --------------------------------------------------------------------------------

    @functools.cached_property
    def text_hash(self) -> str:
        """SHA-256 of all that decides how the text tokenizer tokenizes."""
        state = json.loads(self.text.backend_tokenizer.to_str())
        for name in ("truncation", "padding"):  # of the last call
            state.pop(name, None)
        state["special"] = {name: str(t) for name, t in self.text.special_tokens_map.items()}
        return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()

    @property
    def template_hash(self) -> str:
        """SHA-256 of the chat template."""
        return hashlib.sha256(self.template.source.encode()).hexdigest()

    def identity(self) -> dict[str, Any]:
        """What decides on tokens, as plain values; equal where tokens mean the same."""
        return {
            "vocabulary": self.vocabulary.to_dict(),
            "tokenizer": self.tokenizer.config.name,
            "tokenizer_hash": self.tokenizer_hash,
            "text_hash": self.text_hash,
            "template_hash": self.template_hash,
        }

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the text tokenizer's files and `processor.json`, beside a model's files if need be.

        Raises:
            StorageError: the folder cannot be written.
        """
        folder = Path(folder)
        size = self.pictures.size
        state = {
            "format_version": FORMAT_VERSION,
            **self.identity(),
            "size": list(size) if isinstance(size, tuple) else size,
            "version": semhitok.__version__,
        }
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.text.save_pretrained(folder)
        except OSError as error:
            raise storage_error(folder, error) from error
        text = json.dumps(state, indent=2) + "\n"
        write_file(folder / PROCESSOR, lambda temporary: temporary.write_text(text, "utf-8"))

    @classmethod
    def from_pretrained(cls, folder: str | Path, tokenizer: SemHiTok) -> UnifiedProcessor:
        """What `save_pretrained` wrote, with the image tokenizer that it was made with.

        Raises:
            NotFoundError: the folder has no `processor.json`.
            FormatError: it is damaged, of another version, or was made with another tokenizer.
        """
        from transformers import PreTrainedTokenizerFast

        path = Path(folder) / PROCESSOR
        if not path.is_file():
            raise NotFoundError(
                f"{folder} has no {PROCESSOR}; it is written by save_pretrained of a processor"
            )
        try:
            state = json.loads(path.read_text("utf-8"))
            vocabulary = Vocabulary.from_dict(state["vocabulary"])
            size = state["size"]
            size = tuple(size) if isinstance(size, list) else size
            # Not AutoTokenizer: it would look into the model's config, which is none of its kinds.
            text = PreTrainedTokenizerFast.from_pretrained(folder)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise FormatError(
                f"{path}, or the text tokenizer beside it, is damaged ({reason(error)}); get a "
                "whole copy of the folder"
            ) from error
        if state.get("format_version") != FORMAT_VERSION:
            raise FormatError(
                f"{path} has format {state.get('format_version')}; this version reads "
                f"{FORMAT_VERSION}"
            )
        processor = cls(text, vocabulary, tokenizer, size=size)
        check_identity(processor.identity(), state, str(folder))
        return processor


def _check_parts(
    text: PreTrainedTokenizerBase, vocabulary: Vocabulary, tokenizer: SemHiTok
) -> None:
    """Raises:
    FormatError: parts that do not belong together, or a slow text tokenizer.
    """
    if not text.is_fast:
        raise FormatError(
            f"{type(text).__name__} is a slow tokenizer, which does not tell where its tokens "
            "stand in the text; load it with AutoTokenizer"
        )
    if len(text) != vocabulary.text_length:
        raise FormatError(
            f"the text tokenizer has {len(text)} ids, the vocabulary is for "
            f"{vocabulary.text_length}; load the one that the model was made with"
        )
    sizes = (tokenizer.config.semantic.num_codes, tokenizer.config.pixel.num_codes)
    if sizes != (vocabulary.num_semantic, vocabulary.num_pixel):
        raise FormatError(
            f"{tokenizer.config.name} has {sizes[0]} x {sizes[1]} codes, the vocabulary is for "
            f"{vocabulary.num_semantic} x {vocabulary.num_pixel}; load the one that the model "
            "was made with"
        )


def check_identity(ours: Mapping[str, Any], theirs: Mapping[str, Any], where: str) -> None:
    """See that tokens mean the same here and there.

    Raises:
        FormatError: another vocabulary, tokenizer, text tokenizer or chat template.
    """
    names = {
        "tokenizer_hash": "image tokenizer",
        "vocabulary": "vocabulary",
        "text_hash": "text tokenizer",
        "template_hash": "chat template",
    }
    for name, what in names.items():
        if ours[name] != theirs.get(name):
            said = [_short(state.get(name)) for state in (theirs, ours)]
            if name == "tokenizer_hash":
                said = [
                    f"{s.get('tokenizer')} ({t})" for s, t in zip((theirs, ours), said, strict=True)
                ]
            raise FormatError(
                f"{where} was made with the {what} {said[0]}, not with {said[1]}; use that one"
            )


def _short(value: Any) -> str:
    return value[:12] if isinstance(value, str) else str(value)


def _says(text: str) -> Message:
    return {"role": "assistant", "content": text}


def _is_drawing(turns: Sequence[Turn]) -> bool:
    """One text of the user's, and a picture alone in reply."""
    if [turn.role for turn in turns] != ["user", "assistant"]:
        return False
    (asked, drawn) = (turn.parts for turn in turns)
    return drawn == (0,) and all(isinstance(part, str) for part in asked)


def _asked(script: Script) -> Span:
    """Where the text that is drawn stands, with the blanks before it: whether they are part of its
    first token depends on the word."""
    start, stop = script.asked[0]
    return len(script.text[:start].rstrip(" ")), stop


def _within(places: np.ndarray, span: Span) -> Bool[Tensor, " t"]:
    """Which tokens share a character with the span."""
    return torch.from_numpy((places[:, 0] < span[1]) & (places[:, 1] > span[0]))
