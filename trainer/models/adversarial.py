"""Two nets that learn against each other (SeqGAN: Yu et al. 2017, arXiv:1609.05473): a decoder writes, an encoder
tells what it wrote from real text.

They are one module, `generator.` and `discriminator.`, so one engine steps both, and checkpoints, elastic resume,
the guard and freezing hold for both as for any model. No gradient crosses: tokens are drawn, not computed, and the
reward is detached. The reward is the discriminator's logit, which at its best is log(p of real text / p of the
generator) for a whole text (Goodfellow et al. 2014, arXiv:1406.2661, proposition 1); the generator then descends the
divergence KL(generator || text), the reverse of what likelihood does, in the same unit. What each sample is compared
with is the mean of the row's other samples (RLOO: Ahmadian et al. 2024, arXiv:2402.14740): a baseline without bias,
state, or any look beyond the row. SeqGAN's Monte Carlo search, which rewards single tokens, is left out: it costs a
text's worth of forward passes for every token.
"""

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.generation.sampling import continuations
from trainer.models.head import Head
from trainer.models.loss import IGNORED


class Adversarial(nn.Module):
    """A generator and its discriminator.

    Their weights are zero until `initialize` draws them or a checkpoint is loaded.
    """

    heads: ClassVar[tuple[str, ...]] = ("adversarial",)
    """Kinds of head that it may end in."""
    head_names: ClassVar[tuple[str, ...]] = ("discriminator.",)
    """What the names of its heads' parameters begin with."""

    def __init__(self, generator: Any, discriminator: Any, head: Head) -> None:
        """`generator` is a decoder with its own head, `discriminator` an encoder that gives one logit a text."""
        super().__init__()
        self.generator, self.discriminator, self.head = generator, discriminator, head
        self.config, self.vocab_size = generator.config, generator.vocab_size
        self.loss_kernel = generator.loss_kernel

    def forward(
        self, input_ids: Tensor, labels: Tensor, uniform: Tensor, prompt: int, row_labels: int, mle_weight: float
    ) -> Tensor:
        """The sum over real rows of row_labels * (discriminator's loss + generator's policy loss), and over their
        labels of mle_weight * cross entropy: divided by the labels of full rows, the sum of three means.

        Args:
            input_ids: (B, T) int64, rows of text.
            labels: (B, T) int64, the token that follows each; a row whose labels are all -100 counts nothing.
            uniform: (B, k, N) fp64 in [0, 1), what the tokens of each row's k samples are drawn by.
            prompt: tokens of a row that its samples begin with.
            row_labels: of a full row.
            mle_weight: of the likelihood of real text.
        Returns:
            A scalar in fp32. Its policy part has the right gradient; its value tells nothing.
        """
        real = (labels != IGNORED).any(1).float()
        texts, logits, written = self.judged(input_ids, uniform, prompt)
        others = (written.sum(1, keepdim=True) - written) / (written.size(1) - 1)
        advantage = (written - others).detach() * real[:, None]
        loss = row_labels * (discrimination(logits, written) * real).sum()
        # Of each text: advantage * -log p, a mean over its tokens and over the row's texts.
        worth = row_labels * advantage / (uniform.size(1) * uniform.size(2))
        following = texts[:, 1:].clone()
        following[:, : prompt - 1] = IGNORED
        worth = worth.view(-1, 1).expand_as(following)
        loss = loss + self.generator(texts[:, :-1], following, worth=worth)
        if mle_weight:
            loss = loss + mle_weight * self.generator(input_ids, labels)
        return loss

    def judged(self, input_ids: Tensor, uniform: Tensor, prompt: int) -> tuple[Tensor, Tensor, Tensor]:
        """Samples of each row, (B * k, prompt + N) int64, and the discriminator's fp32 logits: of the real rows' as
        many first tokens (B,), and of the samples (B, k)."""
        texts = self._written(input_ids[:, :prompt], uniform)
        shown = torch.cat([input_ids[:, : texts.size(1)], texts])
        logits = self.discriminator(shown)[:, 0].float()
        rows = len(input_ids)
        return texts, logits[:rows], logits[rows:].view(rows, -1)

    def _written(self, prompts: Tensor, uniform: Tensor) -> Tensor:
        """Samples without dropout."""
        training = self.generator.training
        self.generator.eval()
        try:
            return continuations(self.generator, prompts, uniform)
        finally:
            self.generator.train(training)

    def initial_std(self, name: str, shape: tuple[int, ...]) -> float:
        """As the net has it whose matrix it is."""
        part, _, rest = name.partition(".")
        return getattr(self, part).initial_std(rest, shape)


def discrimination(real: Tensor, written: Tensor) -> Tensor:
    """Each row's loss as one of two classes of equal weight, (B,): of logits (B,) of real text and (B, k) of samples.

    ln 2 where the two can't be told apart.
    """
    return (F.softplus(-real) + F.softplus(written).mean(1)) / 2
