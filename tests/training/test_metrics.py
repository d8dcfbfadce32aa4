"""Figures equal scikit-learn's."""

import warnings

import pytest
import torch
from sklearn import metrics as reference

from training.metrics import Means, Sums, average_precisions, confusion_matrix
from training.ranks import Ranks


@pytest.fixture(params=[2, 3, 10])
def scores(request: pytest.FixtureRequest) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(request.param)
    logits = torch.randn(300, request.param, generator=generator).mul(4).round().div(4)  # with ties
    return logits, torch.randint(0, request.param, (300,), generator=generator)


def test_sums_over_uneven_batches_equal_those_over_all(
    scores: tuple[torch.Tensor, torch.Tensor],
) -> None:
    logits, labels = scores
    sums = Sums(torch.device("cpu"))
    for part in (slice(0, 128), slice(128, 256), slice(256, 300)):
        sums.add(
            torch.nn.functional.cross_entropy(logits[part], labels[part]),
            logits[part],
            labels[part],
        )
    means = sums.means(Ranks())
    assert means.loss == pytest.approx(
        reference.log_loss(labels, logits.double().softmax(1)), rel=1e-6
    )
    assert means.top1 == pytest.approx(
        100 * reference.accuracy_score(labels, logits.topk(1, 1).indices[:, 0])
    )
    if logits.shape[1] > 5:
        exact = (logits.topk(5, 1).indices == labels[:, None]).any(1).double().mean().item()
        assert means.top5 == pytest.approx(100 * exact)
    else:
        assert means.top5 == 100


def test_a_skipped_step_does_not_count() -> None:
    sums = Sums(torch.device("cpu"))
    logits, labels = torch.eye(4), torch.arange(4)
    sums.add(torch.tensor(float("nan")), logits, labels, torch.tensor(False))
    assert sums.means(Ranks()).loss is None
    sums.add(torch.tensor(2.0), logits, labels, torch.tensor(True))
    assert sums.means(Ranks()) == Means(2.0, 100.0, 100.0)
    again = Sums.from_state(sums.state_dict(Ranks()), torch.device("cpu"), Ranks())
    assert again.means(Ranks()) == sums.means(Ranks())
    assert len(again.step_losses()) == 2


def test_average_precision_is_scikit_learn_s(scores: tuple[torch.Tensor, torch.Tensor]) -> None:
    logits, labels = scores
    ours = average_precisions(logits, labels)
    for label in range(logits.shape[1]):
        theirs = reference.average_precision_score(labels == label, logits[:, label])
        assert ours[label].item() == pytest.approx(theirs, abs=1e-12)


def test_a_class_without_images_has_no_average_precision() -> None:
    with warnings.catch_warnings():
        ours = average_precisions(torch.rand(4, 3), torch.tensor([0, 0, 1, 1]))
    assert ours[2].isnan()
    assert not ours[:2].isnan().any()


def test_the_confusion_matrix_is_scikit_learn_s(scores: tuple[torch.Tensor, torch.Tensor]) -> None:
    logits, labels = scores
    predicted = logits.argmax(1)
    expected = reference.confusion_matrix(labels, predicted, labels=range(logits.shape[1]))
    assert (confusion_matrix(predicted, labels, logits.shape[1]).numpy() == expected).all()
