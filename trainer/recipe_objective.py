"""The recipe's `objective`: what a model is asked to predict."""

from typing import Literal

from pydantic import Field

from data.errors import UserError
from data.settings import Branch, Fixed, Section
from trainer.recipe_model import Model

_ONLY: dict[str, tuple[str, ...]] = {
    "mask_rate": ("masked",),
    "whole_word": ("masked",),
    "next_sentence": ("masked",),
    "next_sentence_weight": ("masked",),
    "noise_density": ("span",),
    "mean_span": ("span",),
    "label_smoothing": ("causal", "span", "prefix", "seq2seq", "classification"),
    "positives": ("contrastive",),
    "positive_class": ("contrastive",),
    "pooling": ("contrastive",),
    "temperature": ("contrastive",),
    "group": ("contrastive",),
    "gather": ("contrastive",),
    "mle_weight": ("adversarial",),
    "prompt_tokens": ("adversarial",),
    "sample_tokens": ("adversarial",),
    "samples": ("adversarial",),
    "discriminator": ("adversarial",),
}
"""The objectives that have a use for a setting."""


class Augment(Section):
    """Changes to the texts of examples, new ones at each epoch; never to control pieces or to what is a label.

    Each row's are a function of (seed, position). Paraphrases, such as back-translations, are a dataset of their own
    (same task and tokenizer.reuse), mixed in by data.sources and data.stages: which rows are paraphrases is then a
    function of (seed, position) as well, and their share is a weight.
    """

    drop: Fixed[float] = Field(default=0.0, ge=0, lt=1)
    """Probability that a token is left out; each text keeps one."""
    swap: Fixed[float] = Field(default=0.0, ge=0, le=1)
    """Probability that a token is among those of its text that change places with each other."""

    @property
    def on(self) -> bool:
        """Whether anything changes."""
        return bool(self.drop or self.swap)


class Discriminator(Section):
    """The encoder of family bert that tells a generator's samples from real text; it begins from random weights."""

    hidden_size: Fixed[int | None] = Field(default=None, ge=8)
    """Width of its residual stream, in features. null: the generator's."""
    num_hidden_layers: Fixed[int] = Field(default=2, ge=1)
    """Blocks."""
    num_attention_heads: Fixed[int | None] = Field(default=None, ge=1)
    """Attention heads. null: the generator's."""
    lr_ratio: Branch[float] = Field(default=5.0, gt=0)
    """Its learning rate as a multiple of optimizer.lr, which is the generator's: what rewards must learn faster than
    what is rewarded (two time scales: Heusel et al. 2017, arXiv:1706.08500)."""

    def model(self, generator: Model, tokens: int) -> Model:
        """The net, for texts of so many tokens."""
        return Model(
            family="bert", context=max(tokens, 8), hidden_size=self.hidden_size or generator.hidden_size,
            num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=self.num_attention_heads or generator.num_attention_heads,
            initializer_range=generator.initializer_range,
        )  # fmt: skip


class Objective(Section):
    """What is predicted, and how the loss counts it."""

    kind: Fixed[
        Literal[
            "auto", "causal", "masked", "span", "prefix",
            "seq2seq", "classification", "regression", "qa", "contrastive", "adversarial",
        ]
    ] = "auto"  # fmt: skip
    """causal: the next token; in a dataset of examples only their marked tokens count. masked: the tokens that were
    hidden, from both sides (BERT). span: the spans that were cut out, each after its sentinel (T5). prefix: the rest of
    a row from its beginning (encoder-decoders, and decoders with model.attention prefix). seq2seq: a target after its
    source (encoder-decoders). classification, regression: a class, or a number, for a text or a pair. qa: where an
    answer begins and ends (bert). contrastive: sentence vectors, near for what is alike (InfoNCE). adversarial:
    EXPERIMENTAL, to write texts that a discriminator takes for real (decoders; SeqGAN). auto: what the dataset and the
    family suggest, never contrastive or adversarial; of text a decoder learns the next token (prefix, if that is its
    attention), bert masked tokens, t5 and transformer spans."""
    mask_rate: Fixed[float] = Field(default=0.15, gt=0, lt=1)
    """masked: share of a row's tokens that are predicted. Of these 80 % are hidden behind the mask, 10 % are another
    token, 10 % stay as they are, so that the model can trust no token it sees (BERT)."""
    whole_word: Fixed[bool] = False
    """masked: hide all tokens of a word or none. Harder, hence often better: a hidden part of a word is easily guessed
    from the rest of it. Words longer than the row's share of masks are never hidden."""
    next_sentence: Fixed[bool] = False
    """masked: also tell whether the second part of a row follows the first; in half of the rows the second part is
    another row's. Later models leave it out (RoBERTa)."""
    next_sentence_weight: Fixed[float] = Field(default=1.0, gt=0)
    """masked: weight of a row's next-sentence loss beside the mean loss of its masked tokens; 1 in BERT."""
    noise_density: Fixed[float] = Field(default=0.15, gt=0, lt=1)
    """span: share of a row's tokens that are cut out."""
    mean_span: Fixed[float] = Field(default=3.0, ge=1)
    """span: mean length of what is cut out at one place, in tokens."""
    label_smoothing: Fixed[float] = Field(default=0.0, ge=0, lt=1)
    """causal, span, prefix, seq2seq, classification: the share of a label that is spread over all (arXiv:1512.00567,
    section 7), in training; validation measures without it."""
    positives: Fixed[Literal["auto", "dropout", "pair"]] = "auto"
    """contrastive: what is alike. dropout: a text read twice under different dropout (SimCSE, arXiv:2104.08821); pair:
    the two texts of a pair of `positive_class`. auto: pair where the dataset holds labelled pairs."""
    positive_class: Fixed[str] = ""
    """contrastive, positives pair: the class of pairs that are alike; the texts of other pairs are negatives only."""
    pooling: Fixed[Literal["mean", "cls"]] = "mean"
    """contrastive: a sentence's vector is the mean of its tokens' last hidden states, or that of <|cls|>."""
    temperature: Fixed[float] = Field(default=0.05, gt=0)
    """contrastive: cosines are divided by it."""
    group: Fixed[int] = Field(default=8, ge=2)
    """contrastive: so many consecutive rows are each other's negatives. train.batch_rows and engine.micro_batch must
    divide by it; the loss is then the same at any number of ranks."""
    gather: Fixed[bool] = False
    """contrastive: the negatives are all rows that the ranks read at once. The loss then depends on ranks and
    micro-batch, which the run can't change any more."""
    mle_weight: Fixed[float] = Field(default=1.0, ge=0)
    """adversarial: weight of the cross entropy of real text beside the discriminator's and the policy's losses. 0: the
    generator learns from the discriminator alone, and may soon write one thing only."""
    prompt_tokens: Fixed[int] = Field(default=8, ge=1)
    """adversarial: the generator continues so many first tokens of a row."""
    sample_tokens: Fixed[int] = Field(default=24, ge=1)
    """adversarial: by so many; each costs a forward pass. The discriminator sees both."""
    samples: Fixed[int] = Field(default=4, ge=2)
    """adversarial: texts that the generator writes for each row; each is compared with the others (RLOO,
    arXiv:2402.14740)."""
    discriminator: Discriminator = Discriminator()
    """adversarial: what tells samples from real text."""
    augment: Augment = Augment()
    """Fine-tuning on examples: seeded changes to their texts."""

    @property
    def together(self) -> int:
        """Rows that must share a micro-batch."""
        return self.group if self.kind == "contrastive" else 1

    def judge_of(self, generator: Model) -> Model:
        """adversarial: the discriminator of what `generator` writes."""
        return self.discriminator.model(generator, self.prompt_tokens + self.sample_tokens)

    def refuse_unused(self, kind: str) -> None:
        """Raise UserError where a setting is given that the objective `kind` has no use for."""
        for setting, kinds in _ONLY.items():
            if kind not in kinds and getattr(self, setting) != type(self).model_fields[setting].default:
                raise UserError(
                    f"objective.{setting} means something only with objective {' or '.join(kinds)}, and this run's is "
                    f"{kind}: leave it out"
                )
