"""A causal language model of `transformers` that reads and writes pictures beside text."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationMixin,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import CausalLMOutputWithPast

from semhitok.errors import FormatError
from semhitok.lm.heads import HeadName, default_head, in_chunks, make_head
from semhitok.lm.inputs import CodeVectors, InputName, make_adapter
from semhitok.lm.language import check_logits
from semhitok.lm.vocabulary import Vocabulary
from semhitok.model.config import ALL_PARTS
from semhitok.model.tokenizer import SemHiTok


class UnifiedConfig(PretrainedConfig):  # type: ignore[no-untyped-call]
    """`config.json` of a unified model: the language model's own config, and what is added to it.

    The tokenizer is not part of the model: its name and hash are here.
    """

    model_type = "semhitok-unified"
    sub_configs = {"text_config": AutoConfig}

    def __init__(
        self,
        *,
        text_config: dict[str, Any] | PretrainedConfig | None = None,
        vocabulary: dict[str, int] | None = None,
        tokenizer_name: str = "",
        tokenizer_hash: str = "",
        semantic_dim: int = 0,
        pixel_dim: int = 0,
        image_input: str = "dual",
        image_head: str = "flat",
        head_width: int = 256,
        **kwargs: Any,
    ) -> None:
        """Args:
        text_config: the language model's; "text_config" is where `transformers` looks for it.
        vocabulary: `Vocabulary.to_dict()`.
        semantic_dim: channels of a semantic code vector; `pixel_dim` of a pixel code vector.
        head_width: r of the factorised head.
        """
        if isinstance(text_config, dict):
            text_config = AutoConfig.for_model(**text_config)
        # A copy, as the base class sets the attention of what it finds inside, at first to None:
        # the language model that it came from would no longer mask what is to come.
        text_config = copy.deepcopy(text_config)
        self.text_config = text_config
        self.vocabulary = vocabulary
        self.tokenizer_name = tokenizer_name
        self.tokenizer_hash = tokenizer_hash
        self.semantic_dim, self.pixel_dim = semantic_dim, pixel_dim
        self.image_input, self.image_head = image_input, image_head
        self.head_width = head_width
        super().__init__(**kwargs)


@dataclass
class UnifiedOutput(CausalLMOutputWithPast):
    """What `forward` gives."""

    # A tensor, as ever; but under autocast `accelerate` copies outputs from a mapping given here.
    loss: Any = None
    token_losses: Tensor | None = None
    """Where there are labels, without gradient: sum and count over text ids and markers, then over
    image ids, (2, 2) float32; not weighted."""


class UnifiedModel(PreTrainedModel, GenerationMixin):  # type: ignore[no-untyped-call]
    """Next token over text, image ids and markers, with the language model as it is inside.

    Reading: text ids by the language model's own embedding, image ids by an adapter from the
    tokenizer's code vectors, markers by a small table.

    Writing: one softmax over text ids, markers and one more slot, "an image id"; what falls to the
    slot the image head distributes over the K * m ids. So p(id) = p(slot) p(id | slot), whichever
    the head, and where text is learned no K * m logits are made.
    """

    config_class = UnifiedConfig
    config: UnifiedConfig
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(self, config: UnifiedConfig, language: PreTrainedModel | None = None) -> None:
        """Build with random weights, but for the `language` model where one is given."""
        super().__init__(config)
        assert config.vocabulary is not None and config.text_config is not None
        self.vocabulary = vocabulary = Vocabulary.from_dict(config.vocabulary)
        self.codes = CodeVectors()
        if language is None:
            language = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
                config.text_config
            )
        self.language = language
        self._no_split_modules = language._no_split_modules  # what FSDP wraps
        width = int(config.text_config.hidden_size)
        self.adapter = make_adapter(
            config.image_input, config.semantic_dim, config.pixel_dim, vocabulary.num_images, width
        )
        self.markers = nn.Embedding(vocabulary.num_markers, width)
        self.marker_head = nn.Linear(width, vocabulary.num_markers + 1, bias=False)
        """Logits of the markers, and last of the slot "an image id"."""
        self.image_head = make_head(
            config.image_head,
            width,
            vocabulary.num_semantic,
            vocabulary.num_pixel,
            config.head_width,
        )
        self.post_init()  # type: ignore[no-untyped-call]

    @classmethod
    def unite(
        cls,
        language: PreTrainedModel,
        tokenizer: SemHiTok,
        *,
        text_length: int,
        max_side: int = 64,
        image_input: InputName = "dual",
        image_head: HeadName | None = None,
        head_width: int = 256,
    ) -> UnifiedModel:
        """A language model and a tokenizer as one; what is added between them has random weights.

        Args:
            language: any causal language model; it becomes part of the model, not a copy.
            text_length: `len` of its text tokenizer.
            max_side: the most patches of a picture's side.
            image_head: None for flat up to 2^18 ids, factorised beyond.

        Raises:
            RangeError: the text tokenizer has more ids than the language model rows.
            FormatError: the tokenizer was loaded in parts, or the language model's logits are not
                what its output layer makes of its hidden states, as ours are.
        """
        check_logits(language)
        sizes = tokenizer.config
        vocabulary = Vocabulary(
            text_size=cast(nn.Embedding, language.get_input_embeddings()).num_embeddings,
            text_length=text_length,
            num_semantic=sizes.semantic.num_codes,
            num_pixel=sizes.pixel.num_codes,
            max_side=max_side,
        )
        config = UnifiedConfig(
            text_config=language.config,
            vocabulary=vocabulary.to_dict(),
            tokenizer_name=sizes.name,
            tokenizer_hash=hash_of(tokenizer),
            semantic_dim=sizes.semantic.code_dim,
            pixel_dim=sizes.pixel.code_dim,
            image_input=image_input,
            image_head=image_head or default_head(vocabulary.num_images),
            head_width=head_width,
            attn_implementation=language.config._attn_implementation,
        )
        model = cls(config, language)
        nn.Module.to(model, device=language.device, dtype=language.dtype)
        return model.attach(tokenizer)

    def attach(self, tokenizer: SemHiTok) -> UnifiedModel:
        """Give the model the tokenizer that it was made with; the model itself.

        The tokenizer stays where and as it is: it is no part of `parameters`, `state_dict` or `to`.

        Raises:
            FormatError: it is another tokenizer, or was loaded in parts.
        """
        found = hash_of(tokenizer)
        if found != self.config.tokenizer_hash:
            raise FormatError(
                f"{tokenizer.config.name} ({found[:12]}) is not the tokenizer of this model, "
                f"{self.config.tokenizer_name} ({self.config.tokenizer_hash[:12]}); load that one"
            )
        self.codes.tokenizer = tokenizer
        return self

    def get_input_embeddings(self) -> nn.Module:
        """The language model's own: of text ids only."""
        return self.language.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module:
        """The language model's own: of text ids only."""
        return cast(nn.Module, self.language.get_output_embeddings())

    # -- reading -------------------------------------------------------------------------------

    def embed(self, input_ids: Int64[Tensor, "b t"]) -> Float[Tensor, "b t d"]:
        """Embeddings of text ids, image ids and markers.

        Raises:
            IdError: an id outside the vocabulary.
            NotFoundError: image ids or training, and no tokenizer attached.
        """
        words = self.vocabulary
        words.check(input_ids)
        is_text, is_marker = input_ids < words.image_offset, input_ids >= words.marker_offset
        is_image = ~(is_text | is_marker)
        # Any text id stands in where there is none; its embedding is not used.
        embedded: Tensor = self.get_input_embeddings()(input_ids.where(is_text, 0))
        markers = self.markers(input_ids[is_marker] - words.marker_offset)
        embedded = embedded.masked_scatter(is_marker[..., None], markers.to(embedded.dtype))
        # In training even where there is none: data-parallel ranks must agree on who has gradients.
        if self.training or is_image.any():
            image = self.adapter(input_ids[is_image] - words.image_offset, self.codes)
            embedded = embedded.masked_scatter(is_image[..., None], image.to(embedded.dtype))
        return embedded

    def forward(
        self,
        input_ids: Int64[Tensor, "b t"],
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        labels: Int64[Tensor, "b t"] | None = None,
        image_weight: float = 1.0,
        num_items_in_batch: Tensor | int | None = None,
        logits_to_keep: int = 1,
        read_out: Callable[[Tensor], Tensor] | None = None,
        **kwargs: Any,
    ) -> UnifiedOutput:
        """Loss where there are labels, else log-probabilities of what comes next.

        Args:
            position_ids: where they start anew, and no mask is given, another example begins, which
                does not see those before it.
            labels: the ids themselves, -100 where nothing is to be learned; shifted in here.
            image_weight: of an image id's loss; all others have one of 1.
            num_items_in_batch: what the loss's sum is divided by; None for the labels that are
                learned here. With the count of a whole step, accumulated parts add up to its mean.
            logits_to_keep: last positions to give log-probabilities of, over the whole vocabulary;
                0 for all of them. One by default, as all of a long sequence may not fit in memory.
            read_out: what to give as `logits` of hidden states (n, d) in place of `log_probs`.
            kwargs: cache, attention and the like, for the language model; what it gives of them
                comes back beside `loss` and `logits`.
        """
        kwargs.pop("return_dict", None)
        if labels is not None:
            # With a cache, which models make by default, `transformers` no longer looks for several
            # examples in a row, and each would read those before it.
            kwargs["use_cache"] = False
        outputs = self.language.get_decoder()(
            inputs_embeds=self.embed(input_ids),
            attention_mask=attention_mask,
            position_ids=position_ids,
            **kwargs,
        )
        carried = dict(outputs)
        hidden = carried.pop("last_hidden_state")
        loss = logits = seen = None
        if labels is not None:
            learned = labels[:, 1:] != -100
            targets = labels[:, 1:][learned]
            losses = self.losses(hidden[:, :-1][learned], targets)
            is_image = self.vocabulary.is_image(targets)
            total = num_items_in_batch if num_items_in_batch is not None else max(1, len(losses))
            loss = torch.where(is_image, image_weight * losses, losses).sum() / total
            kinds = torch.stack([~is_image, is_image]).float()
            seen = torch.stack([kinds @ losses.detach(), kinds.sum(dim=1)], dim=1)
        else:
            kept = hidden[:, -logits_to_keep:]  # of 0, all
            logits = (read_out or self.log_probs)(kept.flatten(0, 1)).view(*kept.shape[:2], -1)
        return UnifiedOutput(loss=loss, logits=logits, token_losses=seen, **carried)

    def prepare_inputs_for_generation(
        self,
        input_ids: Int64[Tensor, "b t"],
        *args: Any,
        context: Callable[[Tensor, Tensor], Tensor] | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """`transformers`' own, and with `context` each row reads a part of its tokens.

        Args:
            input_ids: all tokens so far.
            context: from the tokens and their mask to the mask of those that are read. Positions
                count these alone, so that a row goes on as if it had never had the others.
        """
        if context is not None:
            mask = kwargs.get("attention_mask")  # `generate` drops one that hides nothing
            mask = context(input_ids, torch.ones_like(input_ids) if mask is None else mask)
            kwargs |= dict(attention_mask=mask, position_ids=(mask.cumsum(-1) - 1).clamp(min=0))
        prepared = super().prepare_inputs_for_generation(input_ids, *args, **kwargs)
        return cast(dict[str, Any], prepared)

    # -- writing -------------------------------------------------------------------------------

    def losses(
        self, hidden: Float[Tensor, "n d"], tokens: Int64[Tensor, " n"]
    ) -> Float[Tensor, " n"]:
        """Negative log-likelihood of each token after its hidden state, float32, a few at a time.

        Raises:
            IdError: a token outside the vocabulary.
        """
        words = self.vocabulary
        words.check(tokens)
        is_image = words.is_image(tokens)
        # In the outer softmax the markers follow the text at once, and the slot comes last.
        outer = tokens.where(tokens < words.image_offset, tokens - words.num_images)
        outer = outer.where(~is_image, words.text_size + words.num_markers)
        losses = in_chunks(self._outer_loss, hidden, outer, words.size - words.num_images + 1)
        inner = self.image_head.loss(hidden[is_image], tokens[is_image] - words.image_offset)
        return losses.masked_scatter(is_image, losses[is_image] + inner)

    def log_probs(self, hidden: Float[Tensor, "n d"]) -> Float[Tensor, "n vocabulary"]:
        """Of every token, float32, normalised."""
        words = self.vocabulary
        outer = self.outer_log_probs(hidden)
        text, markers, slot = outer.split([words.text_size, words.num_markers, 1], dim=-1)
        return torch.cat([text, slot + self.image_head.log_probs(hidden), markers], dim=-1)

    def outer_log_probs(self, hidden: Float[Tensor, "n d"]) -> Float[Tensor, "n outer"]:
        """Of text ids, markers and the slot "an image id", float32, normalised."""
        return F.log_softmax(self._outer(hidden), dim=-1)

    def _outer(self, hidden: Tensor) -> Tensor:
        """Logits of text ids, markers and the slot."""
        both = [self.get_output_embeddings()(hidden), self.marker_head(hidden)]
        return torch.cat(both, dim=-1).float()

    def _outer_loss(self, hidden: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(self._outer(hidden), targets, reduction="none")


def hash_of(tokenizer: SemHiTok) -> str:
    """The hash of a tokenizer.

    Raises:
        FormatError: it was loaded in parts.
    """
    if set(tokenizer.parts) != set(ALL_PARTS):
        raise FormatError(
            f"{tokenizer.config.name} was loaded for {list(tokenizer.parts)}; its hash is over "
            "all parts: load it whole"
        )
    return tokenizer.hash
