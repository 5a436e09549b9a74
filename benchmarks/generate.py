"""Pictures drawn by a multimodal model, against its own backbone writing text: ids/s, memory.

python benchmarks/generate.py --width 1024 --layers 12 --device cuda --dtype bfloat16

A Qwen3 of random weights and given size; what it writes is noise, and takes the same time. Text is
the language model alone, by its own `generate` with full sampling; the rest is `draw` with flat and
factorised head, with the same key-value cache, without and with guidance (whose batch is twice as
many rows). The first id's time is that of reading the prompt; memory is of tensors alive at once
beside the weights, the cache among them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace

import torch
from encode import planned
from protocol import bar, protocol, race, show
from search import peak_bytes
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen3Config

from semhitok import SemHiTok
from semhitok.lm.generation import draw
from semhitok.lm.model import UnifiedModel
from semhitok.lm.sampling import Sampling

Job = Callable[[int], object]
"""Writes that many ids a row, a square number."""


def language_model(o: argparse.Namespace) -> PreTrainedModel:
    config = Qwen3Config(
        vocab_size=o.text_ids,
        hidden_size=o.width,
        intermediate_size=3 * o.width,
        num_hidden_layers=o.layers,
        num_attention_heads=o.width // 64,
        num_key_value_heads=max(1, o.width // 128),
        head_dim=64,
        max_position_embeddings=o.prompt + o.side**2 + 8,
        bos_token_id=None,
        eos_token_id=None,
    )
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=o.dtype)
    return model.eval().to(o.device)


def tokenizer(num_semantic: int, num_pixel: int) -> SemHiTok:
    """K x m codes; what stands around them is small, since only codes are looked up."""
    config = planned(True)
    semantic = replace(config.semantic, num_codes=num_semantic)
    pixel = replace(config.pixel, num_codes=num_pixel)
    return SemHiTok(replace(config, semantic=semantic, pixel=pixel)).eval()


def text_job(language: PreTrainedModel, prompts: Tensor) -> Job:
    def write(ids: int) -> object:
        return language.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            do_sample=True,
            top_k=0,
            max_new_tokens=ids,
            pad_token_id=0,
        )

    return write


def draw_job(model: UnifiedModel, prompts: Tensor, guidance: float) -> Job:
    def write(ids: int) -> object:
        side = round(ids**0.5)
        sampling = Sampling(guidance=guidance)
        return draw(model, list(prompts), (side, side), sampling=sampling)

    return write


def measure(
    jobs: dict[str, Job], batch: int, ids: int, repeats: int
) -> tuple[list[list[str]], dict[str, float]]:
    """Rows of the table, and ids/s of each job."""
    first = race({name: lambda job=job: job(1) for name, job in jobs.items()}, repeats)
    whole = race({name: lambda job=job: job(ids) for name, job in jobs.items()}, repeats)
    rates = {name: batch * ids / took for name, took in whole.items()}
    text = next(iter(rates.values()))
    rows = [
        [
            name,
            str(batch),
            f"{rate:.1f}",
            f"{rate / text:.2f}",
            f"{1000 * (whole[name] - whole[next(iter(whole))]) / ids:+.2f}",
            f"{1000 * first[name]:.1f}",
            f"{peak_bytes(lambda name=name: jobs[name](ids)) / 1e6:.1f}",
        ]
        for name, rate in rates.items()
    ]
    return rows, rates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--width", type=int, default=512, help="a multiple of 64")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--text-ids", type=int, default=32_000)
    parser.add_argument("--semantic", type=int, default=16_384, help="K")
    parser.add_argument("--pixel", type=int, default=12, help="m")
    parser.add_argument("--side", type=int, default=16, help="patches of a picture's side")
    parser.add_argument("--prompt", type=int, default=32, help="tokens")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs")
    o = parser.parse_args()
    o.dtype = getattr(torch, o.dtype)
    if o.quick:
        o.width, o.layers, o.text_ids, o.semantic, o.pixel = 64, 1, 100, 32, 4
        o.side, o.prompt, o.batches, o.repeats = 3, 4, [1, 2], 1

    torch.manual_seed(0)
    language, codes = language_model(o), tokenizer(o.semantic, o.pixel).to(o.device)
    models = {
        head: UnifiedModel.unite(language, codes, text_length=o.text_ids, image_head=head).eval()
        for head in ("flat", "factorised")
    }
    weights = {"backbone": language} | {f"{n} head": m.image_head for n, m in models.items()}
    counts = {n: sum(p.numel() for p in m.parameters()) / 1e6 for n, m in weights.items()}
    sizes = ", ".join(f"{name} {count:.1f} M" for name, count in counts.items())
    where = torch.cuda.get_device_name() if o.device.startswith("cuda") else o.device
    print(
        protocol(
            o.repeats,
            f"Qwen3 {o.width} x {o.layers}, {str(o.dtype).removeprefix('torch.')} on {where}; "
            f"{sizes}; K = {o.semantic:,}, m = {o.pixel}, {o.text_ids:,} text ids; "
            f"{o.side**2} ids after {o.prompt} tokens",
        )
    )
    rows, bars = [], []
    for batch in o.batches:
        prompts = torch.randint(o.text_ids, (batch, o.prompt), device=o.device)
        jobs = {"text, the backbone": text_job(language, prompts)}
        for head, model in models.items():
            jobs[head] = draw_job(model, prompts, 1.0)
            jobs[f"{head}, guided"] = draw_job(model, prompts, o.guidance)
        found, rates = measure(jobs, batch, o.side**2, o.repeats)
        rows += found
        text, flat, _, small, guided = rates.values()
        bars += [
            bar(f"factorised over text, batch {batch}", small / text, 0.8),
            bar(f"factorised over flat, batch {batch}", small / flat, 1),
            bar(f"guided over not, factorised, batch {batch}", guided / small, 0.5),
        ]
    show(
        ["what", "batch", "ids/s", "of text", "ms a step more", "first id, ms", "memory, MB"], rows
    )
    print("\n" + "\n".join(bars))


if __name__ == "__main__":
    main()
