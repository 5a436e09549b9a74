"""The multimodal model's training: stage after stage, by `transformers`' own Trainer.

A run folder holds `recipe.yaml`, `metrics.jsonl`, a folder for each stage with its checkpoints, and
what each stage leaves: in its own `model/`, the last in `model/` of the run, weights and processor.
DDP, FSDP and DeepSpeed are the Trainer's: start under `torchrun` or `accelerate launch`.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
import yaml
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainingArguments,
)

from semhitok.errors import NotFoundError, RecipeError
from semhitok.extras import require
from semhitok.files import check_writable, write_file
from semhitok.images import reason
from semhitok.lm.callbacks import WHOLE, Interruption, Mark, Record
from semhitok.lm.model import UnifiedModel, UnifiedOutput
from semhitok.lm.processor import UnifiedProcessor, check_identity
from semhitok.lm.recipe import LanguageRecipe, LanguageSection, LanguageStage
from semhitok.lm.sequences import Item, PackedSequences, Sequences, Source
from semhitok.yaml_recipes import parse

log = logging.getLogger(__name__)

KEPT_CHECKPOINTS = 2


class LanguageRun:
    """One run folder of the multimodal model; goes on where it was."""

    def __init__(
        self,
        recipe: LanguageRecipe,
        processor: UnifiedProcessor,
        data: Mapping[str, Sequences],
        folder: Path,
    ) -> None:
        """Args:
        processor: of the recipe's language model and tokenizer.
        data: the prepared sequences that the recipe's stages name.

        Raises:
            MissingExtraError: accelerate is not installed, or peft for a stage with LoRA.
            RecipeError: names without data, a batch that ranks cannot share, or a folder that holds
                a run of another recipe or of other data.
            FormatError: sequences that were prepared for another tokenizer or language model.
            StorageError: the folder cannot be written.
        """
        require("accelerate", extra="lm")
        if any(stage.lora is not None for stage in recipe.stages):
            require("peft", extra="lm")
        self.recipe, self.processor, self.data, self.folder = recipe, processor, data, folder
        for name, sequences in data.items():
            check_identity(processor.identity(), sequences.identity, f"data {name}")
        missing = sorted({name for stage in recipe.stages for name in stage.data} - data.keys())
        if missing:
            raise RecipeError(
                f"recipe {recipe.name} learns from {', '.join(missing)}; give each a prepared "
                f"folder: --data {missing[0]}=FOLDER"
            )
        # Of all stages at once: what the last of them refuses is refused before the first step.
        self.items = [self._items(number) for number in range(len(recipe.stages))]
        self.arguments = [self._arguments(s, number) for number, s in enumerate(recipe.stages)]
        self._claim_folder()

    def train(self) -> UnifiedModel:
        """Run what is left of the stages; the model, also written to `model/`.

        Raises:
            NotFoundError: the language model cannot be had.
            TrainingError: a loss is not finite.
            KeyboardInterrupt: after the step that it came in, and a checkpoint of it.
        """
        stages = range(len(self.recipe.stages))
        done = max((number + 1 for number in stages if self._left_by(number).is_dir()), default=0)
        model = self._start(done)
        for number in stages[done:]:
            model = self._run_stage(number, model)
            self._save(model, self._left_by(number))
        return model

    # -- stages --------------------------------------------------------------------------------

    def _left_by(self, number: int) -> Path:
        """The model folder that a stage leaves."""
        last = number == len(self.recipe.stages) - 1
        return (self.folder if last else self.folder / self.recipe.stages[number].name) / "model"

    def _start(self, number: int) -> UnifiedModel:
        """The model as the stage before left it, or as the language model and chance make it."""
        if number:
            before = self._left_by(number - 1)
            model = UnifiedModel.from_pretrained(before, dtype=torch.float32)
            return model.attach(self.processor.tokenizer)
        torch.manual_seed(self.recipe.seed)
        words = self.processor.vocabulary
        return UnifiedModel.unite(
            load_language(self.recipe.language),
            self.processor.tokenizer,
            text_length=words.text_length,
            max_side=words.max_side,
            image_input=self.recipe.image_input,
            image_head=self.recipe.image_head,
            head_width=self.recipe.head_width,
        )

    def _items(self, number: int) -> PackedSequences:
        stage = self.recipe.stages[number]
        return PackedSequences(
            [Source(self.data[name], weight) for name, weight in stage.data.items()],
            length=stage.length,
            items=stage.steps * stage.batch_size,
            seed=self.recipe.seed + number,
            drop=stage.drop,
        )

    def _run_stage(self, number: int, model: UnifiedModel) -> UnifiedModel:
        stage = self.recipe.stages[number]
        log.info("stage %s: %d steps", stage.name, stage.steps)
        if self.recipe.gradient_checkpointing:
            cast(Any, model).gradient_checkpointing_enable({"use_reentrant": False})
        learner = _learner(model, stage)
        interruption = Interruption()
        trainer = _StageTrainer(
            model=learner,
            args=self.arguments[number],
            train_dataset=self.items[number],
            data_collator=stack,
            callbacks=[Record(self.folder / "metrics.jsonl", stage.name), Mark(), interruption],
        )
        trainer.remove_callback(PrinterCallback)  # stdout is for results
        trainer.image_loss = stage.image_loss
        self.processor.tokenizer.to(self.arguments[number].device)  # it follows no `model.to`
        checkpoint = newest_checkpoint(self.folder / stage.name)
        with interruption:
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        if interruption.asked:
            raise KeyboardInterrupt
        trainer.accelerator.wait_for_everyone()
        if stage.lora is not None:
            learner = trainer.accelerator.unwrap_model(learner)
            return cast(UnifiedModel, cast(Any, learner).merge_and_unload())
        return model

    def _arguments(self, stage: LanguageStage, number: int) -> TrainingArguments:
        recipe, optimizer = self.recipe, stage.optimizer
        arguments = TrainingArguments(
            output_dir=str(self.folder / stage.name),
            max_steps=stage.steps,
            per_device_train_batch_size=stage.micro_batch,
            learning_rate=optimizer.lr,
            lr_scheduler_type="cosine_with_min_lr",
            lr_scheduler_kwargs={"min_lr_rate": optimizer.final},
            warmup_steps=optimizer.warmup,
            weight_decay=optimizer.weight_decay,
            adam_beta1=optimizer.betas[0],
            adam_beta2=optimizer.betas[1],
            max_grad_norm=optimizer.clip,
            bf16=recipe.dtype == "bfloat16",
            use_cpu=not torch.cuda.is_available(),
            train_sampling_strategy="sequential",  # an item's number says where it comes
            seed=recipe.seed + number,
            logging_steps=recipe.log_every,
            logging_nan_inf_filter=False,
            save_steps=recipe.checkpoint_every,
            save_total_limit=KEPT_CHECKPOINTS,
            remove_unused_columns=False,
            ddp_find_unused_parameters=False,
            report_to="none",
            disable_tqdm=True,
            log_level="error",
        )
        share = stage.micro_batch * arguments.world_size
        if stage.batch_size % share:
            raise RecipeError(
                f"stage {stage.name}: batch_size is {stage.batch_size}; it must be a multiple of "
                f"micro_batch {stage.micro_batch} x {arguments.world_size} ranks"
            )
        arguments.gradient_accumulation_steps = stage.batch_size // share
        return arguments

    def _save(self, model: UnifiedModel, folder: Path) -> None:
        """Whole or not at all; the first rank writes for all."""
        if _is_first():
            temporary = folder.with_name(f".{folder.name}.tmp")
            shutil.rmtree(temporary, ignore_errors=True)
            model.save_pretrained(temporary)
            self.processor.save_pretrained(temporary)
            temporary.rename(folder)
        _barrier()

    def _claim_folder(self) -> None:
        """Write down what is trained on what, or see that it is the same as before."""
        resolved = {
            "recipe": self.recipe.model_dump(mode="json"),
            "data": {name: each.fingerprint for name, each in sorted(self.data.items())},
        }
        path = self.folder / "recipe.yaml"
        if path.is_file():
            before = yaml.safe_load(path.read_text())
            recipe = parse(LanguageRecipe, before["recipe"]).model_dump(mode="json")
            for what, then in (("recipe", recipe), ("data", before["data"])):
                if then != resolved[what]:
                    raise RecipeError(
                        f"{self.folder} holds a run of another {what}; use the same to go on with "
                        "it, or another --out"
                    )
        elif _is_first():
            check_writable(self.folder, 0)
            text = yaml.safe_dump(resolved, sort_keys=False)
            write_file(path, lambda temporary: temporary.write_text(text))
        _barrier()


def load_language(section: LanguageSection) -> PreTrainedModel:
    """The language model of a recipe, float32.

    Raises:
        NotFoundError: it cannot be had.
    """
    try:
        if section.weights == "random":
            config = AutoConfig.from_pretrained(section.source, revision=section.revision)
            model = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
                config, dtype=torch.float32
            )
        else:
            model = AutoModelForCausalLM.from_pretrained(
                section.source, revision=section.revision, dtype=torch.float32
            )
    except (OSError, ValueError) as error:
        raise NotFoundError(
            f"no language model {section.source!r} ({reason(error)}); give a folder, or a name of "
            "the Hub; weights: random needs its config alone"
        ) from error
    return cast(PreTrainedModel, model)


def stack(items: Sequence[Item]) -> dict[str, Tensor]:
    """A batch of items."""
    rows = cast(Sequence[dict[str, Tensor]], items)
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint of a stage that was written to its end; others are removed."""
    numbered = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    whole = [path for path in numbered if (path / WHOLE).is_file()]
    _barrier()
    if _is_first():
        for path in set(numbered) - set(whole):
            shutil.rmtree(path)
    return whole[-1] if whole else None


def _learner(model: UnifiedModel, stage: LanguageStage) -> nn.Module:
    """The model as the stage trains it."""
    model.train()
    model.requires_grad_(True)
    if stage.trains == "all":
        return model
    if stage.lora is None:
        model.language.requires_grad_(False)
        return model
    from peft import LoraConfig, get_peft_model

    layers = "|".join(stage.lora.layers)
    config = LoraConfig(
        r=stage.lora.rank,
        lora_alpha=cast(int, stage.lora.alpha),
        lora_dropout=stage.lora.dropout,
        target_modules=rf"language\..*\.({layers})",
        modules_to_save=["adapter", "markers", "marker_head", "image_head"],
    )
    return cast(nn.Module, get_peft_model(model, config))


class _StageTrainer(Trainer):
    """`transformers`' Trainer; losses of text and of pictures are logged apart."""

    image_loss = 1.0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._seen = torch.zeros(2, 2)

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> Any:
        kwargs["return_outputs"] = True
        inputs = {**inputs, "image_weight": self.image_loss}
        loss, outputs = super().compute_loss(model, inputs, *args, **kwargs)
        seen = cast(UnifiedOutput, outputs).token_losses
        assert seen is not None
        self._seen = self._seen.to(seen.device) + seen
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        sums, counts = self._seen.unbind(dim=1)
        for name, total, count in zip(
            ("text", "image"), sums.tolist(), counts.tolist(), strict=True
        ):
            if count:
                logs[f"loss/{name}"] = total / count
        self._seen = torch.zeros(2, 2)
        super().log(logs, start_time)


def _is_first() -> bool:
    return not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0


def _barrier() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
