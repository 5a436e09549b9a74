"""`semhitok ask`: a question about a picture."""

from __future__ import annotations

from typing import Annotated

import typer

from semhitok.cli.console import (
    DeviceOption,
    ImageTokenizerOption,
    JsonOption,
    MultimodalArgument,
    SeedOption,
    print_json,
)


def ask(
    model: MultimodalArgument,
    image: Annotated[str, typer.Argument(metavar="IMAGE", help="A picture.", show_default=False)],
    question: Annotated[str, typer.Argument(metavar="QUESTION", show_default=False)],
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", min=1, help="Longer answers are cut.")
    ] = 128,
    temperature: Annotated[
        float, typer.Option("--temperature", min=0, help="0 takes the likeliest words.")
    ] = 0.0,
    seed: SeedOption = 0,
    tokenizer: ImageTokenizerOption = None,
    device: DeviceOption = None,
    json_: JsonOption = False,
) -> None:
    """Ask a multimodal model about a picture; the answer is on stdout."""
    from semhitok.cli.models import load_assistant, pick_device
    from semhitok.lm.sampling import Level, Sampling

    assistant = load_assistant(model, tokenizer, pick_device(device))
    sampling = Sampling(text=Level(temperature=temperature))
    answer = assistant.ask(
        image, question, max_new_tokens=max_new_tokens, sampling=sampling, seed=seed
    )
    if json_:
        print_json({"image": image, "question": question, "answer": answer})
    else:
        print(answer)
