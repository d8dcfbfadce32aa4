"""What is minimised and measured: the loss, sums that stay on the device, metrics of all test
scores.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from training.ranks import Ranks

Columns = dict[str, list[Any]]  # a value a class; None where there is none
# Weight of an auxiliary head's loss (arXiv 1409.4842, section 5).
AUXILIARY = 0.3


@dataclass(frozen=True)
class Means:
    """Means over the images of a pass: loss, top-1 and top-5 in percent.

    None where there were no images.
    """

    loss: float | None = None
    top1: float | None = None
    top5: float | None = None


@dataclass(frozen=True)
class Bin:
    """Images of about one confidence: its mean, the share that is right, and how many they are."""

    confidence: float
    accuracy: float
    count: int


class Criterion:
    """The training loss.

    weights: (K,) of each class; smoothing: share of the target that is spread over all classes.
    """

    def __init__(self, weights: Tensor | None = None, smoothing: float = 0.0) -> None:
        self.weights, self.smoothing = weights, smoothing

    def __call__(self, heads: tuple[Tensor, ...], targets: Tensor) -> Tensor:
        """Return the cross-entropy's sum over the images, (), the auxiliary heads' added at their
        weight.

        heads: logits (N, K), the main head's first; targets: (N,) labels or (N, K) shares.
        """
        # Auxiliary heads exist in training only; their gradient helps the early layers.
        first, *others = (self._of_head(head, targets) for head in heads)
        return first + AUXILIARY * sum(others) if others else first

    def _of_head(self, logits: Tensor, targets: Tensor) -> Tensor:
        # Half precision would add up hundreds of losses with 8 or 11 bits.
        logits = logits.float() if logits.dtype.itemsize < 4 else logits
        return F.cross_entropy(
            logits, targets, self.weights, reduction="sum", label_smoothing=self.smoothing
        )


class Sums:
    """Loss, top-1 and top-5 over a pass, and each step's loss; `add` never waits for the device."""

    def __init__(self, device: torch.device, losses: Tensor | None = None) -> None:
        # Loss, top-1, top-5, images. float64: whole numbers stay exact over any data set.
        self.values = torch.zeros(4, dtype=torch.float64, device=device)
        self.losses: list[Tensor] = [] if losses is None else list(losses.to(device).unbind())

    def add(
        self,
        loss: Tensor,
        scores: Tensor,
        labels: Tensor,
        counted: Tensor | None = None,
        total: int | None = None,
    ) -> None:
        """Add one batch.

        loss: (), the mean over this rank's images; scores: (N, K); labels: (N,); counted: () bool,
        False for a step that was skipped: its images do not count; total: images of the batch over
        all ranks, where losses of steps are kept.
        """
        best = scores.topk(min(5, scores.shape[1]), 1).indices == labels[:, None]
        hits = best.sum(0, dtype=torch.float64)  # (<= 5,), of each rank among the best

        # new_full fills on the device; a tensor made from a number would be copied, and waited for.
        count = len(labels)
        batch = torch.stack(
            [(loss * count).double(), hits[0], hits.sum(), hits.new_full((), count)]
        )
        if counted is not None:
            batch = torch.where(counted, batch, 0.0)

        self.values += batch
        self.losses.append(loss.float() * (count / total) if total else loss.float())

    def means(self, ranks: Ranks) -> Means:
        """Return the means over the images of all ranks. Waits for the device."""
        loss, top1, top5, count = ranks.sum(self.values.clone()).tolist()
        if not count:
            return Means()
        return Means(loss / count, 100 * top1 / count, 100 * top5 / count)

    def state_dict(self, ranks: Ranks) -> dict[str, Tensor]:
        """Return all ranks' sums on rank 0: values (ranks, 4), losses (ranks, steps)."""
        values, losses = self.values[None].cpu(), self.step_losses()[None].cpu()
        return {"values": ranks.collect(values), "losses": ranks.collect(losses)}

    def step_losses(self) -> Tensor:
        """Return each step's mean loss, or this rank's part of it, (steps,) float32."""
        return torch.stack(self.losses) if self.losses else torch.empty(0)

    @classmethod
    def from_state(cls, state: dict[str, Tensor], device: torch.device, ranks: Ranks) -> "Sums":
        """Return this rank's sums; of a run with another number of ranks, all of them on rank 0."""
        values, losses = state["values"], state["losses"]
        if len(values) != ranks.world:
            values, losses = _all_on_first(values, ranks.world), _all_on_first(losses, ranks.world)

        sums = cls(device, losses[ranks.rank])
        sums.values.copy_(values[ranks.rank])
        return sums


def _all_on_first(rows: Tensor, world: int) -> Tensor:
    """Return (world, n): the sum of the rows of another number of ranks, then zeros."""
    result = torch.zeros(world, rows.shape[1], dtype=rows.dtype)
    result[0] = rows.sum(0)
    return result


def confusion_matrix(predicted: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Return (K, K) int64: row, the true class; column, the predicted one."""
    pairs = torch.bincount(labels * classes + predicted, minlength=classes * classes)
    return pairs.view(classes, classes)


def average_precisions(scores: Tensor, labels: Tensor) -> Tensor:
    """Return each class's average precision, (K,) float64 in [0, 1], NaN for a class without
    images.

    scores: (N, K); labels: (N,). Images of one score enter at one threshold, as in scikit-learn's
    average_precision_score: sum over thresholds of (recall - recall before) x precision.
    """
    result = torch.full((scores.shape[1],), float("nan"), dtype=torch.float64)
    for label in range(scores.shape[1]):
        relevant = labels == label
        if relevant.any():
            result[label] = _average_precision(scores[:, label], relevant)

    return result


def _average_precision(scores: Tensor, relevant: Tensor) -> Tensor:
    order = scores.argsort(descending=True)
    # Recall rises with every relevant image in this order, precision is their share so far.
    scores, hits = scores[order], relevant[order].double().cumsum(0)
    last_of_threshold = torch.ones_like(relevant)
    last_of_threshold[:-1] = scores[1:] != scores[:-1]

    found = hits[last_of_threshold]
    precision = found / (last_of_threshold.nonzero()[:, 0] + 1)
    gained = torch.diff(found, prepend=found.new_zeros(1)) / found[-1]
    return (gained * precision).sum()


def per_class(scores: Tensor, labels: Tensor) -> Columns:
    """Return columns with a value a class: images, top1, precision, recall, f1, average_precision,
    confused_with.

    scores: (N, K); labels: (N,). Percent, as scikit-learn defines them; None where a class has no
    image, or for precision where no image was predicted as it. confused_with: the class that most
    of its images are wrongly predicted as, or None.
    """
    matrix = confusion_matrix(scores.argmax(1), labels, scores.shape[1])
    hits = matrix.diag().double()
    images = matrix.sum(1)
    predicted = matrix.sum(0)
    # What a class is confused with is never itself.
    errors = matrix - torch.diag(matrix.diag())
    columns = {
        "top1": hits / images,
        "precision": hits / predicted,
        "recall": hits / images,
        "f1": 2 * hits / (images + predicted),
        "average_precision": average_precisions(scores, labels),
    }

    result: Columns = {"images": images.tolist()}

    for name, shares in columns.items():
        result[name] = _percent(shares, images)
    most, confused = errors.max(1)
    pairs = zip(most.tolist(), confused.tolist(), strict=True)
    return result | {"confused_with": [label if count else None for count, label in pairs]}


def _percent(shares: Tensor, images: Tensor) -> list[float | None]:
    """Return shares in percent, None for NaN and for classes without images."""
    known = zip(shares.tolist(), images.tolist(), strict=True)
    return [100 * share if count and share == share else None for share, count in known]


def confident_errors(scores: Tensor, labels: Tensor, most: int | None = None) -> Tensor:
    """Return the rows, (<= most,), of the misclassified images, the least probable labels first:
    among them are the wrong ones.

    scores: (N, K) probabilities; labels: (N,).
    """
    of_label = scores.gather(1, labels[:, None])[:, 0]
    wrong = (scores.argmax(1) != labels).nonzero()[:, 0]
    return wrong[of_label[wrong].argsort(stable=True)[:most]]


def suspected(scores: Tensor, labels: Tensor) -> Tensor:
    """Return (N,) bool: which labels are probably wrong, by confident learning (Northcutt, Jiang,
    Chuang 2021, arXiv 1911.00068, equation 2).

    scores: (N, K) probabilities of networks that were not trained on these images; labels: (N,).
    An image may belong to the classes whose probability is at least the mean one of the images with
    that label. Where the most probable of them is another than its label, and no other class is
    more probable than that one, the label is suspected.
    """
    own = torch.nn.functional.one_hot(labels, scores.shape[1]).bool()
    # A class without images is nobody's.
    counts = own.sum(0)
    means = torch.where(own, scores, 0.0).double().sum(0) / counts.clamp(min=1)
    means[counts == 0] = float("inf")
    possible = torch.where(scores >= means - 1e-6, scores, -1.0)
    most, guess = possible.max(1)
    return (most >= 0) & (guess != labels) & (scores.argmax(1) != labels)


def calibration(scores: Tensor, labels: Tensor, bins: int = 15) -> tuple[float, list[Bin]]:
    """Return the expected calibration error, in [0, 1], and the bins that hold images.

    scores: (N, K) probabilities; labels: (N,). Guo et al. 2017, arXiv 1706.04599, equation 3: bins
    of equal width of the largest probability, the gap between it and the accuracy, weighed by
    images.
    """
    best, predicted = scores.double().max(1)
    hits = (predicted == labels).double()
    # A probability of 0 is nobody's largest; the upper border belongs to the bin.
    places = (best * bins).ceil().long().clamp(1, bins) - 1
    error, found = 0.0, []
    for place in range(bins):
        inside = places == place
        count = int(inside.sum())
        if count:
            confidence, accuracy = best[inside].mean().item(), hits[inside].mean().item()
            error += count / len(labels) * abs(confidence - accuracy)
            found.append(Bin(confidence, accuracy, count))
    return error, found
