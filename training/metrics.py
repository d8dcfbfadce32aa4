"""What is minimised and measured: the loss, sums that stay on the device until a pass ends, figures from test scores."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

AUXILIARY = 0.3  # weight of an auxiliary head's loss (arXiv 1409.4842, section 5)


class Criterion:
    """The loss that is trained on. weights: (K,) of each class; smoothing: share of the target spread over all classes."""

    def __init__(self, weights: Tensor | None = None, smoothing: float = 0.0) -> None:
        self.weights, self.smoothing = weights, smoothing

    def __call__(self, heads: tuple[Tensor, ...], targets: Tensor) -> Tensor:
        """Return the cross-entropy's sum over the images, (), the auxiliary heads' added at their weight.

        heads: logits (N, K), the main head's first; targets: (N,) labels or (N, K) shares.
        """
        first, *others = (self._of(head.float() if head.dtype.itemsize < 4 else head, targets) for head in heads)
        return first + AUXILIARY * sum(others) if others else first

    def _of(self, logits: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(logits, targets, self.weights, reduction="sum", label_smoothing=self.smoothing)


class Sums:
    """Loss, top-1 and top-5 over a pass, and each step's loss; nothing here waits for the device."""

    def __init__(self, device: torch.device, losses: Tensor | None = None) -> None:
        self.values = torch.zeros(4, dtype=torch.float64, device=device)  # loss, top-1, top-5, images
        self.losses: list[Tensor] = [] if losses is None else list(losses.to(device).unbind())

    def add(
        self, loss: Tensor, logits: Tensor, labels: Tensor, counted: Tensor | None = None, total: int | None = None
    ) -> None:
        """Add a batch. loss: () mean over its images; logits: (N, K); labels: (N,); counted: () bool, else True.

        total: images of the batch over all ranks, whose losses of a step then add up to the batch's.
        """
        best = logits.topk(min(5, logits.shape[1]), 1).indices == labels[:, None]  # (N, <= 5)
        count = len(labels)
        batch = torch.stack([loss * count, best[:, 0].sum(), best.sum(), loss.new_tensor(count)]).double()
        self.values += batch if counted is None else torch.where(counted, batch, torch.zeros_like(batch))
        self.losses.append(loss.float() * (count / total) if total else loss.float())

    def result(self, ranks: Any = None) -> dict[str, float | None]:
        """Return mean loss, top-1 and top-5 in percent, over the images of all ranks. None where there were none."""
        values = self.values.clone() if ranks is None else ranks.sum(self.values.clone())
        loss, top1, top5, count = values.tolist()
        if not count:
            return {"loss": None, "top1": None, "top5": None}
        return {"loss": loss / count, "top1": 100 * top1 / count, "top5": 100 * top5 / count}

    def state_dict(self, ranks: Any) -> dict[str, Tensor]:
        """Return all ranks' sums on rank 0: values (ranks, 4), losses (ranks, steps)."""
        return {"values": ranks.collect(self.values[None].cpu()), "losses": ranks.collect(self.step_losses()[None].cpu())}

    def step_losses(self) -> Tensor:
        """Return each step's mean loss, or this rank's part of it, (steps,) float32."""
        return torch.stack(self.losses) if self.losses else torch.empty(0)

    @classmethod
    def from_state(cls, state: dict[str, Tensor], device: torch.device, ranks: Any) -> "Sums":
        """Return this rank's sums; of a run with another number of ranks, all of them on rank 0."""
        values, losses = state["values"], state["losses"]
        if len(values) != ranks.world:
            values, losses = (torch.zeros(ranks.world, part.shape[1], dtype=part.dtype) for part in (values, losses))
            values[0], losses[0] = state["values"].sum(0), state["losses"].sum(0)
        sums = cls(device, losses[ranks.rank])
        sums.values.copy_(values[ranks.rank])
        return sums


def confusion_matrix(predicted: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Return (K, K) int64: row, the true class; column, the predicted one."""
    return torch.bincount(labels * classes + predicted, minlength=classes * classes).view(classes, classes)


def average_precisions(scores: Tensor, labels: Tensor) -> Tensor:
    """Return each class's average precision, (K,) float64 in [0, 1], NaN for a class without images.

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
    scores, hits = scores[order], relevant[order].double().cumsum(0)
    last = torch.ones_like(relevant)  # the last image of each threshold
    last[:-1] = scores[1:] != scores[:-1]
    found = hits[last]
    precision = found / (last.nonzero()[:, 0] + 1)
    gained = torch.diff(found, prepend=found.new_zeros(1)) / found[-1]
    return (gained * precision).sum()


def per_class(scores: Tensor, labels: Tensor) -> dict[str, list[Any]]:
    """Return columns with a value a class: images, top1, precision, recall, f1, average_precision, confused_with.

    scores: (N, K); labels: (N,). Percent, as scikit-learn defines them; None where a class has no image, or for precision
    where none was called by its name. confused_with: the class that most of its images are wrongly called, or None.
    """
    matrix = confusion_matrix(scores.argmax(1), labels, scores.shape[1])
    hits, images, called = matrix.diag().double(), matrix.sum(1), matrix.sum(0)
    errors = matrix - torch.diag(matrix.diag())
    columns = {
        "top1": hits / images, "precision": hits / called, "recall": hits / images, "f1": 2 * hits / (images + called),
        "average_precision": average_precisions(scores, labels),
    }  # fmt: skip
    empty = images == 0
    result: dict[str, list[Any]] = {"images": images.tolist()}
    for name, values in columns.items():
        result[name] = [None if v != v or none else 100 * v for v, none in zip(values.tolist(), empty.tolist(), strict=True)]
    most = zip(errors.max(1).values.tolist(), errors.argmax(1).tolist(), strict=True)
    return result | {"confused_with": [place if count else None for count, place in most]}


def confident_errors(scores: Tensor, labels: Tensor, most: int) -> Tensor:
    """Return the positions, (<= most,), of the wrongly named images whose wrong class has the highest scores."""
    best = scores.max(1)
    wrong = (best.indices != labels).nonzero()[:, 0]
    return wrong[best.values[wrong].argsort(descending=True, stable=True)[:most]]
