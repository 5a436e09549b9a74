"""Seconds of one training step, and of attention by the fused kernel and written out.

python benchmarks/train_step.py tiny --stage pixel --crop 64 --batch-size 64
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch

from semhitok.model import SemHiTok, layers
from semhitok.train.recipe import load_recipe
from semhitok.train.run import TRAINERS, load_teacher, tokenizer_config
from semhitok.train.world import World


def seconds(work: Callable[[], object], repeats: int) -> float:
    """Of one call, after two that do not count."""
    for _ in range(2):
        work()
    started = time.perf_counter()
    for _ in range(repeats):
        work()
    return (time.perf_counter() - started) / repeats


def step_seconds(recipe_name: str, stage: str, crop: int, batch_size: int, repeats: int) -> float:
    recipe, world = load_recipe(recipe_name), World.join()
    teacher = load_teacher(recipe).to(world.device)
    model = SemHiTok(tokenizer_config(recipe, teacher), teacher).to(world.device).eval()
    trainer = TRAINERS[stage](model, teacher, recipe, world)
    images = torch.rand(batch_size, 3, crop, crop, device=world.device)
    steps = iter(range(1_000_000))
    return seconds(lambda: float(trainer.step(images, next(steps))["loss/total"]), repeats)


def attention_seconds(batch_size: int, heads: int, tokens: int, repeats: int) -> float:
    """Forward and backward in bfloat16, heads 32 wide."""
    shape = (batch_size, heads, tokens, 32)
    q, k, v = (torch.randn(shape).bfloat16().requires_grad_() for _ in range(3))
    gradient = torch.randn(shape).bfloat16()
    return seconds(lambda: layers.attend(q, k, v).backward(gradient), repeats)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe")
    parser.add_argument("--stage", choices=list(TRAINERS), default="pixel")
    parser.add_argument("--crop", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=10)
    options = parser.parse_args()
    limit = layers.WRITTEN_OUT_TOKENS
    for name, tokens in (("written out", limit), ("fused", 0)):
        layers.WRITTEN_OUT_TOKENS = tokens
        step = step_seconds(
            options.recipe, options.stage, options.crop, options.batch_size, options.repeats
        )
        rate = options.batch_size / step
        print(f"attention {name}: {step:.3f} s a step, {rate:.0f} images/s")
    for tokens in (64, 256):
        for name, most in (("written out", tokens), ("fused", 0)):
            layers.WRITTEN_OUT_TOKENS = most
            took = attention_seconds(4096 // tokens, 4, tokens, options.repeats)
            print(f"attention alone, 4,096 tokens in rows of {tokens}, {name}: {took * 1e3:.1f} ms")


if __name__ == "__main__":
    main()
