"""The recipe's `model`: a family and its sizes, named as Hugging Face names them."""

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from data.settings import Fixed, Section
from trainer.models.presets import filled

FAMILIES = ("llama", "gpt2", "bert", "t5", "transformer")
DECODERS = ("llama", "gpt2")
ENCODER_DECODERS = ("t5", "transformer")

_ONLY: dict[str, tuple[str, ...]] = {
    "num_decoder_layers": ENCODER_DECODERS,
    "num_key_value_heads": ("llama",),
    "head_dim": ("llama", "t5"),
    "rope_theta": ("llama",),
    "rope_scaling": ("llama",),
    "rms_norm_eps": ("llama", "t5"),
    "layer_norm_eps": ("gpt2", "bert", "transformer"),
    "attention": DECODERS,
    "type_vocab_size": ("bert",),
    "relative_attention_num_buckets": ("t5",),
    "relative_attention_max_distance": ("t5",),
    "decoder_start_id": ENCODER_DECODERS,
    "initializer_range": ("llama", "gpt2", "bert"),
}


def _multiple_of_8(value: int) -> int:
    if value % 8:
        raise ValueError("must be a multiple of 8")
    return value


class RopeScaling(Section):
    """How rotary positions are stretched beyond the length first trained on; Hugging Face's `rope_parameters`."""

    rope_type: Fixed[Literal["default", "linear", "llama3"]] = "default"
    """default: not at all; linear: all frequencies divided by factor; llama3: the low ones, as Llama 3.1 does."""
    factor: Fixed[float] = Field(default=1.0, ge=1)
    """linear, llama3: how many times longer."""
    low_freq_factor: Fixed[float] = Field(default=1.0, gt=0)
    """llama3: frequencies that turn less often than this over the original length are divided by factor."""
    high_freq_factor: Fixed[float] = Field(default=4.0, gt=0)
    """llama3: frequencies that turn more often than this are left alone; in between they are blended."""
    original_max_position_embeddings: Fixed[int] = Field(default=8192, ge=1)
    """llama3: the length first trained on, in tokens."""

    @model_validator(mode="before")
    @classmethod
    def _known_kind(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("rope_type") == "dynamic":
            raise ValueError(
                "rope_type dynamic would change a token's key as its text grows, and up to the context it changes "
                "nothing: leave rope_scaling out, or take linear or llama3"
            )
        return given

    @model_validator(mode="after")
    def _settings_fit_kind(self) -> Self:
        for setting, field in type(self).model_fields.items():
            kinds = ("linear", "llama3") if setting == "factor" else ("llama3",)
            if setting != "rope_type" and self.rope_type not in kinds and getattr(self, setting) != field.default:
                raise ValueError(f"{setting} means something only with rope_type {' or '.join(kinds)}")
        if self.rope_type == "llama3" and self.low_freq_factor >= self.high_freq_factor:
            raise ValueError(
                f"low_freq_factor {self.low_freq_factor} must be below high_freq_factor {self.high_freq_factor}"
            )
        return self


class Model(Section):
    """A transformer of one of five families."""

    family: Fixed[Literal["llama", "gpt2", "bert", "t5", "transformer"]] = "llama"
    """llama: a decoder with RMSNorm, rotary positions, grouped-query attention, SwiGLU; gpt2: a decoder with learned
    positions; bert: an encoder; t5: an encoder-decoder with relative positions (v1.1); transformer: the
    encoder-decoder of 2017."""
    preset: Fixed[str | None] = None
    """Sizes by name for what is left open here. llama: tiny, small, base, 1b, 3b, 7b, 8b, 13b, 70b; gpt2: tiny, small,
    medium, large, xl; bert: tiny, mini, small, medium, base, large; t5: tiny, small, base, large, 3b, 11b; transformer:
    tiny, small, base, big. null: the defaults below."""
    vocab_size: Fixed[int | None] = Field(default=None, ge=2)
    """Rows of the embedding, in tokens. null: the tokenizer's pieces, padded to a multiple of 128."""
    context: Fixed[int] = Field(default=256, ge=8)
    """Longest sequence, in tokens; a decoder's row of text holds one more, so that each token is a label
    once."""
    hidden_size: Annotated[Fixed[int], AfterValidator(_multiple_of_8)] = Field(default=192, ge=8)
    """Width of the residual stream, in features."""
    intermediate_size: Fixed[int | None] = Field(default=None, ge=8)
    """Width of the feed-forward layer, in features. null: 8/3 of hidden_size (llama, t5), rounded up to a multiple of
    64, or 4 times hidden_size."""
    num_hidden_layers: Fixed[int] = Field(default=6, ge=1)
    """Blocks; of an encoder-decoder, the encoder's."""
    num_decoder_layers: Fixed[int | None] = Field(default=None, ge=1)
    """t5, transformer: the decoder's blocks. null: as many as the encoder's."""
    num_attention_heads: Fixed[int] = Field(default=6, ge=1)
    """Query heads; hidden_size must divide by it unless head_dim is set."""
    num_key_value_heads: Fixed[int] = Field(default=2, ge=1)
    """llama: key and value heads (grouped-query attention); must divide num_attention_heads."""
    head_dim: Fixed[int | None] = Field(default=None, ge=2)
    """llama, t5: width of one head, in features. null: hidden_size / num_attention_heads."""
    rope_theta: Fixed[float] = Field(default=10000.0, gt=0)
    """llama: base of the rotary position frequencies."""
    rope_scaling: RopeScaling = RopeScaling()
    """llama: how the positions are stretched beyond the length first trained on."""
    rms_norm_eps: Fixed[float] = Field(default=1e-5, gt=0)
    """llama, t5: added to the mean square in RMSNorm."""
    layer_norm_eps: Fixed[float] = Field(default=1e-5, gt=0)
    """gpt2, bert, transformer: added to the variance in LayerNorm."""
    tie_word_embeddings: Fixed[bool] = True
    """Use the embedding as the output projection too; transformer always does."""
    attention: Fixed[Literal["document", "full", "prefix"]] = "document"
    """llama, gpt2: a token sees, of what is before it, only its own document, or the whole row. prefix: the whole row,
    and the tokens at its beginning see one another in both directions: those that objective prefix draws, those of an
    example's prompt, and in generation those of the prompt."""
    residual_dropout: Fixed[float] = Field(default=0.0, ge=0, lt=1)
    """Probability of dropping a feature of a block's output before it joins the residual stream, in training; of the
    embeddings too, except in llama."""
    attention_dropout: Fixed[float] = Field(default=0.0, ge=0, lt=1)
    """Probability of dropping an attention weight, in training."""
    type_vocab_size: Fixed[int] = Field(default=2, ge=1)
    """bert: token types; 0 is the first text of an example, 1 the second."""
    relative_attention_num_buckets: Fixed[int] = Field(default=32, ge=4)
    """t5: learned distances between tokens."""
    relative_attention_max_distance: Fixed[int] = Field(default=128, ge=8)
    """t5: distances beyond this, in tokens, share a bucket."""
    decoder_start_id: Fixed[int | None] = Field(default=None, ge=0)
    """t5, transformer: the token that the decoder begins with. null: the tokenizer's padding."""
    initializer_range: Fixed[float] = Field(default=0.02, gt=0)
    """llama, gpt2, bert: standard deviation of the initial weights; the projections into a decoder's residual stream
    get 1/sqrt(2 layers). t5 and transformer go by each matrix's widths instead."""

    @model_validator(mode="before")
    @classmethod
    def _filled_by_preset(cls, given: Any) -> Any:
        known = isinstance(given, dict) and given.get("family", "llama") in FAMILIES
        return filled(given, given.get("family", "llama")) if known else given

    @model_validator(mode="after")
    def _settings_fit_family(self) -> Self:
        for setting, families in _ONLY.items():
            default = type(self).model_fields[setting].default
            if self.family not in families and getattr(self, setting) != default:
                raise ValueError(
                    f"{setting} means something only with family {' or '.join(families)}, not {self.family}"
                )
        return self

    @model_validator(mode="after")
    def _embeddings_fit_family(self) -> Self:
        if self.family == "transformer" and not self.tie_word_embeddings:
            raise ValueError(
                "tie_word_embeddings false means nothing with family transformer: it has one matrix for all"
            )
        exact = self.relative_attention_num_buckets // 2
        if self.family == "t5" and self.relative_attention_max_distance <= exact:
            raise ValueError(
                f"relative_attention_max_distance {self.relative_attention_max_distance} must be above half of "
                f"relative_attention_num_buckets, {exact}: so many distances have a bucket of their own"
            )
        return self

    @model_validator(mode="after")
    def _heads_fit(self) -> Self:
        if self.head_dim is None and self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} does not divide by num_attention_heads {self.num_attention_heads}"
            )
        if self.head_size % 2:
            raise ValueError(f"a head's width, hidden_size / num_attention_heads = {self.head_size}, must be even")
        if self.family == "llama" and self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads {self.num_attention_heads} does not divide by "
                f"num_key_value_heads {self.num_key_value_heads}"
            )
        return self

    @property
    def head_size(self) -> int:
        """Width of one attention head, in features."""
        return self.head_dim or self.hidden_size // self.num_attention_heads

    @property
    def key_value_heads(self) -> int:
        """Heads that have keys and values of their own."""
        return self.num_key_value_heads if self.family == "llama" else self.num_attention_heads

    @property
    def mlp_size(self) -> int:
        """`intermediate_size`, or its default, in features."""
        gated = -(-self.hidden_size * 8 // 3 // 64) * 64
        return self.intermediate_size or (gated if self.family in ("llama", "t5") else 4 * self.hidden_size)

    @property
    def decoder_layers(self) -> int:
        """Blocks of an encoder-decoder's decoder."""
        return self.num_decoder_layers or self.num_hidden_layers

    @property
    def is_decoder(self) -> bool:
        """Whether it predicts the next token of one sequence."""
        return self.family in DECODERS

    @property
    def is_encoder_decoder(self) -> bool:
        """Whether it reads one sequence and writes another."""
        return self.family in ENCODER_DECODERS
