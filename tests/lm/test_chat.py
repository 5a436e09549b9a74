from __future__ import annotations

from collections.abc import Callable

import pytest
from transformers import PreTrainedTokenizerFast

from semhitok.errors import FormatError
from semhitok.lm.chat import ChatTemplate
from semhitok.lm.messages import Turn

Make = Callable[..., PreTrainedTokenizerFast]
ASK = Turn("user", (0, "\nWhat is it?"))
REPLY = Turn("assistant", ("A dog.",))
DRAW = [Turn("user", ("draw a fish",)), Turn("assistant", (1,))]


def parts(script: object, spans: str) -> list[str]:
    return [script.text[a:b].replace(script.picture, "#") for a, b in getattr(script, spans)]  # type: ignore[attr-defined]


def test_where_contents_and_replies_stand(make_text: Make) -> None:
    script = ChatTemplate(make_text("chatml")).write([ASK, REPLY, *DRAW], prompt=False)
    assert script.text.replace(script.picture, "#") == (
        "<|begin|>user\n#\nWhat is it?<|end|>\n<|begin|>assistant\nA dog.<|end|>\n"
        "<|begin|>user\ndraw a fish<|end|>\n<|begin|>assistant\n#<|end|>"
    )
    assert parts(script, "asked") == ["#\nWhat is it?", "draw a fish"]
    assert parts(script, "replies") == ["A dog.<|end|>", "#<|end|>"]


def test_blanks_that_a_template_cuts_off_do_not_count(make_text: Make) -> None:
    turns = [Turn("user", ("  why? ",)), Turn("assistant", (" so \n",))]
    script = ChatTemplate(make_text("plain")).write(turns, prompt=False)
    assert script.text == "<s>USER: why? ASSISTANT: so </s>"
    assert parts(script, "asked") == ["why?"] and parts(script, "replies") == [" so </s>"]
    script = ChatTemplate(make_text("chatml")).write(turns, prompt=False)
    assert "user\n  why? <|end|>" in script.text and parts(script, "replies") == [" so \n<|end|>"]


@pytest.mark.parametrize("template", ["chatml", "thinking", "plain", "default"])
def test_a_prompt_is_the_beginning_of_what_is_learned(make_text: Make, template: str) -> None:
    """Of each reply, also where the template writes old replies in another way."""
    chat = ChatTemplate(make_text(template))
    turns = [Turn("system", ("Be kind.",)), ASK, REPLY, *DRAW]
    whole = chat.write(turns, prompt=False)
    for number, reply in ((2, 0), (4, 1)):
        before = chat.write(turns[:number], prompt=True).text
        start = whole.replies[reply][0]
        assert before.replace("\ue000", "#") == whole.text[:start].replace(whole.picture, "#")


def test_one_turn_is_what_the_template_itself_writes(make_text: Make) -> None:
    for template in ("chatml", "thinking", "plain"):
        text = make_text(template)
        messages = [{"role": "user", "content": "why?"}, {"role": "assistant", "content": "so"}]
        rendered = text.apply_chat_template(messages, tokenize=False)
        turns = [Turn("user", ("why?",)), Turn("assistant", ("so",))]
        assert ChatTemplate(text).write(turns, prompt=False).text == rendered.rstrip()


def test_generation_marks_say_the_same(make_text: Make) -> None:
    """What a template marks as the assistant's is what is found without marks."""
    marked = (
        "{% for m in messages %}<|begin|>{{ m.role }}\n"
        "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|end|>{% endgeneration %}"
        "{% else %}{{ m.content }}<|end|>{% endif %}\n{% endfor %}"
        "{% if add_generation_prompt %}<|begin|>assistant\n{% endif %}"
    )
    text = make_text(marked)
    messages = [{"role": "user", "content": "why?"}, {"role": "assistant", "content": "so it is"}]
    turns = [Turn(m["role"], (m["content"],)) for m in messages * 2]
    out = text.apply_chat_template(messages * 2, return_assistant_tokens_mask=True)
    script = ChatTemplate(text).write(turns, prompt=False)
    found = text(script.text, add_special_tokens=False, return_offsets_mapping=True)
    learned = [
        int(any(start < b and stop > a for a, b in script.replies))
        for start, stop in found["offset_mapping"]
    ]
    assert out["assistant_masks"][: len(learned)] == learned
    assert sum(out["assistant_masks"]) == sum(learned) > 0


def test_marks_are_characters_that_nobody_wrote(make_text: Make) -> None:
    strange = "\ue000\ue001 1\ue0021\ue002"
    turns = [Turn("user", (strange, 0)), Turn("assistant", (strange,))]
    script = ChatTemplate(make_text("chatml")).write(turns, prompt=False)
    assert script.text.count(script.picture) == 1 and script.text.count(strange) == 2


FIRST_ONLY = "{{ messages[0].content }}<|end|>{% if add_generation_prompt %}>{% endif %}"
NO_END = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
REWRITES = (
    "{% for m in messages %}{% if m.role == 'user' and loop.length < 2 %}NEW{% endif %}"
    "{{ m.content }}<|end|>{% endfor %}"
)
TWICE = "{% for m in messages %}{{ m.content }}<|end|>{% endfor %}{{ messages[0].content }}"
REFUSES = "{{ raise_exception('roles must alternate') }}"


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (NO_END, "ends message 1, the assistant's, with no special token"),
        (REWRITES, "writes what is before message 1 in another way once it is there"),
        (FIRST_ONLY, "in another way"),
        (TWICE, "in another way"),
        (REFUSES, r"refuses the conversation \(.*roles must alternate\)"),
    ],
)
def test_templates_that_no_reply_can_be_learned_with(
    make_text: Make, template: str, said: str
) -> None:
    with pytest.raises(FormatError, match=said):
        ChatTemplate(make_text(template)).write([ASK, REPLY], prompt=False)


def test_a_template_without_a_generation_prompt(make_text: Make) -> None:
    """A picture is drawn right after a prompt, and so must stand there when it is learned."""
    chat = ChatTemplate(
        make_text("{% for m in messages %}{{ m.role }}: {{ m.content }}</s>{% endfor %}")
    )
    text = chat.write([ASK, REPLY], prompt=False)
    assert parts(text, "replies") == ["assistant: A dog.</s>"]
    with pytest.raises(FormatError, match="puts 'assistant: ' between its generation prompt and"):
        chat.write([Turn("user", ("draw",)), Turn("assistant", (0,))], prompt=False)


def test_a_template_that_loses_a_message(make_text: Make) -> None:
    loses = (
        "{% for m in messages if m.role != 'system' %}{{ m.content }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}>{% endif %}"
    )
    with pytest.raises(FormatError, match="leaves out, repeats or moves what messages say"):
        ChatTemplate(make_text(loses)).write([Turn("system", ("Be kind.",)), ASK], prompt=True)


@pytest.mark.parametrize(
    ("turns", "said"),
    [
        ([Turn("tool", ("x",))], "message 0 has role 'tool'; allowed: system, user, assistant"),
        ([ASK], "of 1 messages does not end with the assistant's"),
        ([], "of 0 messages"),
        ([REPLY], "the first message is the assistant's"),
        ([Turn("user", ("a<|end|>b",)), REPLY], r"message 0 has the control token '<\|end\|>'"),
    ],
)
def test_conversations_that_cannot_be_learned(
    make_text: Make, turns: list[Turn], said: str
) -> None:
    with pytest.raises(FormatError, match=said):
        ChatTemplate(make_text("chatml")).write(turns, prompt=False)


def test_no_template_and_no_end_of_sequence(make_text: Make) -> None:
    text = make_text("default")
    text.eos_token = None
    with pytest.raises(FormatError, match="neither a chat template nor an eos_token"):
        ChatTemplate(text)
