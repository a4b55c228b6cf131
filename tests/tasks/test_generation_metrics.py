import math

import pytest
import torch

from sptune.errors import InputError
from sptune.tasks.generation_metrics import completion_losses, loss_metrics, text_metrics


def test_losses_are_those_of_labeled_tokens_after_their_prefix():
    logits = torch.randn(2, 5, 7)
    labels = torch.tensor([[-100, -100, 3, 4, -100], [-100, 1, -100, -100, -100]])
    losses = completion_losses(logits, labels)
    log_p = logits.log_softmax(-1)
    torch.testing.assert_close(losses[0], torch.stack([-log_p[0, 1, 3] - log_p[0, 2, 4], torch.tensor(2.0)]))
    torch.testing.assert_close(losses[1], torch.stack([-log_p[1, 0, 1], torch.tensor(1.0)]))


def test_every_token_counts_the_same_however_long_its_completion():
    metrics = loss_metrics([[6.0, 3.0], [1.0, 1.0]])
    assert metrics["loss"] == pytest.approx(7 / 4)
    assert metrics["perplexity"] == pytest.approx(math.exp(7 / 4))
    assert loss_metrics([[1e6, 1.0]])["perplexity"] == math.inf


def test_texts_are_compared_without_outer_spaces_and_in_any_script():
    assert text_metrics([" a place "], ["a place"]) == {"exact_match": 1.0, "rouge_l": 1.0}
    assert text_metrics(["на улице"], ["на улице тихо"]) == {"exact_match": 0.0, "rouge_l": pytest.approx(0.8)}
    mixed = text_metrics(["the cat sat", ""], ["the dog sat", "x"])
    assert mixed == {"exact_match": 0.0, "rouge_l": pytest.approx((2 / 3) / 2)}
    for generated, completions in (([], []), (["a"], ["a", "b"])):
        with pytest.raises(InputError, match="Cannot compare"):
            text_metrics(generated, completions)


def test_rouge_of_texts_without_words_or_spaces():
    assert text_metrics([":-)"], [":-)"]) == {"exact_match": 1.0, "rouge_l": 1.0}
    assert text_metrics([":-("], [":-)"]) == {"exact_match": 0.0, "rouge_l": 0.0}
    assert text_metrics(["这部电影很好"], ["这部电影很坏"])["rouge_l"] == pytest.approx(5 / 6)
