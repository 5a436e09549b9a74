"""`semhitok chat`: a conversation with texts and pictures, at the terminal."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from semhitok.cli.console import (
    DeviceOption,
    GuidanceOption,
    ImageTokenizerOption,
    MultimodalArgument,
    PatchesOption,
    SeedOption,
    TemperatureOption,
    TopKOption,
    TopPOption,
    check_output_folder,
    message,
    parse_patches,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from semhitok.lm.assistant import Assistant
    from semhitok.lm.sampling import Sampling

HELP = "/image PATH adds a picture to what you say next, /new forgets all, /quit ends"


def chat(
    model: MultimodalArgument,
    out: Annotated[
        Path, typer.Option("--out", help="The folder of the pictures that it draws.")
    ] = Path("chat"),
    size: PatchesOption = None,
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", min=1, help="Of a reply, pictures included.")
    ] = 2048,
    text_temperature: Annotated[
        float, typer.Option("--text-temperature", min=0, help="Of words; 0 takes the likeliest.")
    ] = 0.0,
    guidance: GuidanceOption = 3.0,
    temperature: TemperatureOption = 1.0,
    top_k: TopKOption = None,
    top_p: TopPOption = 1.0,
    seed: SeedOption = 0,
    tokenizer: ImageTokenizerOption = None,
    device: DeviceOption = None,
) -> None:
    """Talk with a multimodal model, a line a turn.

    Replies are on stdout as they come; pictures go into --out, and their names stand in the reply.
    """
    check_output_folder(out)
    from semhitok.cli.models import load_assistant, pick_device
    from semhitok.lm.sampling import Level, Sampling

    patches = parse_patches(size)
    words = Level(text_temperature)
    sampling = Sampling.of_images(temperature, top_k, top_p, guidance=guidance, text=words)
    assistant = load_assistant(model, tokenizer, pick_device(device))
    talk = _Talk(assistant, out, patches, max_new_tokens, sampling, seed)
    message(HELP)
    for line in _lines():
        if line == "/quit":
            break
        talk.take(line)


def _lines() -> Iterator[str]:
    """What the user types, without blank lines."""
    while True:
        print("> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line:
            return
        if line.strip():
            yield line.strip()


class _Talk:
    """The conversation so far."""

    def __init__(
        self,
        assistant: Assistant,
        out: Path,
        size: tuple[int, int] | None,
        max_new_tokens: int,
        sampling: Sampling,
        seed: int,
    ) -> None:
        self.assistant, self.out, self.size = assistant, out, size
        self.max_new_tokens, self.sampling, self.seed = max_new_tokens, sampling, seed
        self.messages: list[dict[str, Any]] = []
        self.pictures: list[Any] = []
        self.waiting: list[Any] = []
        """Pictures that go with what is said next, as grids."""
        self.drawn = 0

    def take(self, line: str) -> None:
        """One line of the user's; what cannot be done is said, and nothing is lost."""
        from semhitok.errors import SemHiTokError

        word, _, rest = line.partition(" ")
        try:
            if word == "/image":
                self.waiting += self.assistant.processor.pictures.grids([rest.strip()])
            elif line == "/new":
                self.messages, self.pictures, self.waiting = [], [], []
            elif word.startswith("/"):
                message(HELP)
            else:
                self._say(line)
        except SemHiTokError as error:
            message("error: " + " ".join(str(error).split()))

    def _say(self, text: str) -> None:
        from semhitok.lm.listening import StreamerListener
        from semhitok.lm.messages import IMAGE_PLACE

        places = f"{IMAGE_PLACE}\n" * len(self.waiting)
        messages = [*self.messages, {"role": "user", "content": places + text}]
        pictures = [*self.pictures, *self.waiting]
        listener = StreamerListener.printing(self.assistant.processor.text, self._show)
        pieces = self.assistant.reply(
            messages,
            pictures,
            size=self.size,
            max_new_tokens=self.max_new_tokens,
            sampling=self.sampling,
            seed=self.seed + len(messages),
            listener=listener,
        )
        content = "".join(p if isinstance(p, str) else IMAGE_PLACE for p in pieces)
        self.messages = [*messages, {"role": "assistant", "content": content}]
        self.pictures = [*pictures, *(p for p in pieces if not isinstance(p, str))]
        self.waiting = []

    def _show(self, ids: Any, height: int) -> None:
        """A picture that is whole goes to a file."""
        from semhitok.images import to_pil
        from semhitok.lm.picture_sets import Folder

        if len(ids) < height:
            return
        name = f"{self.drawn:04d}.png"
        Folder(self.out).put(name, to_pil(self.assistant.paint(ids)))
        self.drawn += 1
        print(self.out / name, flush=True)
