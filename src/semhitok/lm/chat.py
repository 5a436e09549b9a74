"""A conversation as a chat template writes it, and where pictures, contents and replies stand.

A conversation is laid out turn by turn: what the template puts before a reply, which is its
generation prompt, then the reply up to its end-of-turn token. So a prompt is the beginning of what
was trained on, also with templates that write old turns in another way than new ones, as those of
models that think do; they must only continue a prompt by a reply, or are refused.

Places are found by private marks around contents, which take no part in what comes out.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from semhitok.errors import FormatError
from semhitok.extras import require
from semhitok.images import reason
from semhitok.lm.examples import Span
from semhitok.lm.messages import Turn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ROLES = ("system", "user", "assistant")

DEFAULT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ message.role }}:\n{{ message.content | trim }}{{ eos_token }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}assistant:\n{% endif %}"
)
"""For text tokenizers without a template of their own: those of base models."""


@dataclass(frozen=True)
class Script:
    """A conversation as text, every picture one character."""

    text: str
    picture: str
    """The character."""
    asked: tuple[Span, ...]
    """The contents that are not the assistant's, in order."""
    replies: tuple[Span, ...]
    """What the assistant says, each with its end-of-turn token."""


class ChatTemplate:
    """The chat template of a text tokenizer, or ours where it has none."""

    def __init__(self, text: PreTrainedTokenizerBase) -> None:
        """Raises:
        MissingExtraError: jinja2 is not installed.
        FormatError: the tokenizer has no template and no end-of-sequence token for ours.
        """
        require("jinja2", extra="lm")
        self._text = text
        self.source: str = text.get_chat_template() if text.chat_template else DEFAULT_TEMPLATE
        if self.source == DEFAULT_TEMPLATE and text.eos_token is None:
            raise FormatError(
                "the text tokenizer has neither a chat template nor an eos_token to end a turn "
                "with; set one of them"
            )
        added = [str(token) for token in text.added_tokens_decoder.values() if token.special]
        names = sorted({*text.all_special_tokens, *added}, key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, names)) or r"(?!)")

    def write(self, turns: Sequence[Turn], *, prompt: bool) -> Script:
        """Args:
            prompt: lay out all turns and what comes before the assistant's next reply; else up to
                the end of the last reply.

        Raises:
            FormatError: a turn with a control token in its text, an order of turns that the
                template refuses, no reply to learn, or a template that does not continue a prompt
                by a reply, changes contents, or ends a reply with no special token.
        """
        for number, turn in enumerate(turns):
            self._check(number, turn)
        if not turns or not prompt and turns[-1].role != "assistant":
            raise FormatError(
                f"a conversation of {len(turns)} messages does not end with the assistant's; "
                "leave out what has no reply"
            )
        texts = [part for turn in turns for part in turn.parts if isinstance(part, str)]
        marks = _Marks.unused_in("".join(texts) + self.source)
        marked = [{"role": turn.role, "content": marks.around(turn)} for turn in turns]
        written = ""
        for number, turn in enumerate(turns):
            if turn.role == "assistant":
                before = self._render(marked[:number], prompt=True)
                after = self._render(marked[: number + 1], prompt=False)
                written += before[self._end(before, marks, number) :]
                drawn = isinstance(next(iter(turn.parts), None), int)
                reply = self._reply(before, after, marks, number, drawn)
                written += marks.begin + reply + marks.end
        if prompt:
            before = self._render(marked, prompt=True)
            written += before[self._end(before, marks, len(turns)) :]
        return marks.read(written, turns)

    def _check(self, number: int, turn: Turn) -> None:
        if turn.role not in ROLES:
            raise FormatError(
                f"message {number} has role {turn.role!r}; allowed: {', '.join(ROLES)}"
            )
        found = self._special.search("".join(part for part in turn.parts if isinstance(part, str)))
        if found:
            raise FormatError(
                f"message {number} has the control token {found[0]!r} in its text; leave it out, "
                "as it would end or begin a turn"
            )

    def _render(self, messages: list[dict[str, str]], *, prompt: bool) -> str:
        from jinja2 import TemplateError

        if not messages:
            raise FormatError("the first message is the assistant's; begin with the user's")
        try:
            return str(
                self._text.apply_chat_template(
                    messages,
                    chat_template=self.source,
                    tokenize=False,
                    add_generation_prompt=prompt,
                    enable_thinking=False,  # of templates that know it: a reply is all answer
                )
            )
        except (TemplateError, TypeError, ValueError) as error:
            raise FormatError(
                f"the chat template refuses the conversation ({reason(error)}); change it, or the "
                "tokenizer's chat_template"
            ) from error

    def _reply(
        self, before: str, after: str, marks: _Marks, number: int, picture_first: bool
    ) -> str:
        """What the template writes for a reply, its end-of-turn token included."""
        if not after.startswith(before):
            raise FormatError(
                f"the chat template writes what is before message {number} in another way once it "
                "is there, so that no prompt would continue as trained; give the tokenizer a "
                "chat_template without that"
            )
        reply = after[len(before) : self._end(after, marks, number + 1)]
        before_picture, found, _ = reply.partition(marks.picture)
        if not (found and picture_first):
            return reply
        if before_picture.strip():
            raise FormatError(
                f"the chat template puts {before_picture!r} between its generation prompt and a "
                "picture in reply, which must come right after a prompt to be drawn; give the "
                "tokenizer a chat_template without that"
            )
        return reply[len(before_picture) :]

    def _end(self, rendered: str, marks: _Marks, number: int) -> int:
        """Where the last reply ends of a text that has messages 0 to `number` - 1."""
        said = rendered.rfind(marks.said)
        if said < 0:
            return 0
        found = self._special.search(rendered, said)
        if not found:
            raise FormatError(
                f"the chat template ends message {number - 1}, the assistant's, with no special "
                "token, so that a reply would never end; give the tokenizer a chat_template with "
                "one"
            )
        return found.end()


@dataclass(frozen=True)
class _Marks:
    """Characters of Unicode's private use that occur nowhere in a conversation."""

    picture: str
    """On both sides of a picture's number."""
    open: str
    """Before a content that is not the assistant's."""
    close: str
    said: str
    """After the assistant's content."""
    begin: str
    """Before a reply."""
    end: str

    @classmethod
    def unused_in(cls, text: str) -> _Marks:
        taken = set(text)
        free = (char for char in map(chr, range(0xE000, 0xF900)) if char not in taken)
        return cls(*(next(free) for _ in range(6)))

    def around(self, turn: Turn) -> str:
        """The content with its marks within the blanks around it, which templates may cut off."""
        content = "".join(
            part if isinstance(part, str) else f"{self.picture}{part}{self.picture}"
            for part in turn.parts
        )
        core = content.strip()
        before, _, after = content.partition(core) if core else (content, "", "")
        if turn.role == "assistant":
            return before + core + self.said + after
        return before + self.open + core + self.close + after

    def read(self, written: str, turns: Sequence[Turn]) -> Script:
        """The text without marks, and where they stood."""
        single = re.escape(self.open + self.close + self.said + self.begin + self.end)
        text = ""
        marks = (self.open, self.close, self.begin, self.end)
        places: dict[str, list[int]] = {mark: [] for mark in marks}
        pictures: list[int] = []
        for part in re.split(f"({self.picture}[0-9]+{self.picture}|[{single}])", written):
            if part[:1] == self.picture:
                pictures.append(int(part[1:-1]))
                text += self.picture
            elif part in places:
                places[part].append(len(text))
            elif part != self.said:
                text += part
        wanted = [part for turn in turns for part in turn.parts if isinstance(part, int)]
        asked = sum(turn.role != "assistant" for turn in turns)
        if pictures != wanted or len(places[self.open]) != asked:
            raise FormatError(
                "the chat template leaves out, repeats or moves what messages say; give the "
                "tokenizer a chat_template that writes every message once, in order"
            )
        spans = [
            tuple(zip(places[first], places[last], strict=True))
            for first, last in ((self.open, self.close), (self.begin, self.end))
        ]
        return Script(text, self.picture, *spans)
