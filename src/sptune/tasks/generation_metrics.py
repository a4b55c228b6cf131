"""Measures of written text: the loss of completion tokens, perplexity, exact match and ROUGE-L."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812

from sptune.errors import InputError

IGNORED = -100
# Characters of Chinese and Japanese, which are written without spaces between words.
UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
WORD = re.compile(rf"[{UNSPACED}]|[^\W_{UNSPACED}]+")


def completion_losses(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The summed loss of each row's completion tokens, and their number.

    Args:
        logits: of a causal language model, (batch, length, vocabulary).
        labels: (batch, length), -100 at tokens that are not part of a completion.

    Returns:
        (batch, 2) in float32.
    """
    targets = labels[:, 1:]
    predicted = targets != IGNORED
    losses = F.cross_entropy(logits[:, :-1][predicted].float(), targets[predicted], reduction="none")
    sums = torch.zeros(labels.shape, device=logits.device)[:, 1:].masked_scatter(predicted, losses).sum(1)
    return torch.stack([sums, predicted.sum(1).float()], dim=1)


def loss_metrics(losses: np.ndarray) -> dict[str, float]:
    """Mean loss and perplexity of completion tokens.

    Args:
        losses: summed loss and number of tokens of each example, (n, 2), as `completion_losses` gives them.

    Returns:
        "loss" in nats per token, and "perplexity", its exponential.
    """
    sums, counts = np.asarray(losses, dtype=np.float64).sum(0)
    loss = float(sums / max(counts, 1))
    with np.errstate(over="ignore"):
        return {"loss": loss, "perplexity": float(np.exp(loss))}


def text_metrics(generated: Sequence[str], completions: Sequence[str]) -> dict[str, float]:
    """Compare generated texts with the completions of the data, without spaces at their ends.

    Returns:
        "exact_match", the share of equal texts, and "rouge_l", the mean F-measure of ROUGE-L (Lin 2004) without
        stemming. Equal texts score 1, even without a word.

    Raises:
        InputError: if there are no texts, or not as many of both.
    """
    if not len(generated) or len(generated) != len(completions):
        raise InputError(f"Cannot compare {len(generated)} texts with {len(completions)} completions; give as many.")
    from rouge_score.rouge_scorer import RougeScorer  # loads NLTK

    scorer = RougeScorer(["rougeL"], tokenizer=_Words())
    pairs = [(text.strip(), wanted.strip()) for text, wanted in zip(generated, completions, strict=True)]
    return {
        "exact_match": float(np.mean([text == wanted for text, wanted in pairs])),
        "rouge_l": float(
            np.mean([text == wanted or scorer.score(wanted, text)["rougeL"].fmeasure for text, wanted in pairs])
        ),
    }


class _Words:
    """Lower-case words of letters and digits, and single characters of Chinese and Japanese.

    The default of rouge-score knows only a to z.
    """

    def tokenize(self, text: str) -> list[str]:
        return WORD.findall(text.lower())
