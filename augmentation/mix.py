"""Images and labels mixed within a batch: mixup (arXiv 1710.09412) and CutMix (arXiv 1905.04899).

The share of the partner and the box are one for the batch, drawn by (epoch, batch), so all ranks
share them; a partner is another image of the same rank's share.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

# Draws at the end of u: the centre of CutMix's box, x and y, and the partner.
BOX_X = -3
BOX_Y = -2
PARTNER = -1


def mixup(
    images: Tensor, labels: Tensor, classes: int, u: Tensor, alpha: float = 0.2
) -> tuple[Tensor, Tensor]:
    """Blend each image and its label with a partner's.

    images: (N, C, H, W); labels: (N,) int64; u: (draws,) in [0, 1), on the host. Returns images of
    the same type and labels (N, classes) float32.
    """
    share = beta(u, alpha)
    partner = _partner(len(images), u)
    mixed = images.float().lerp(images.roll(partner, 0).float(), 1 - share)
    mixed = mixed.round().to(torch.uint8) if images.dtype == torch.uint8 else mixed.to(images.dtype)
    return mixed, soft(labels, labels.roll(partner, 0), classes, share)


def cutmix(
    images: Tensor, labels: Tensor, classes: int, u: Tensor, alpha: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Replace one box of each image by its partner's; labels mix by area. As `mixup`."""
    height, width = images.shape[2:]
    side = (1 - beta(u, alpha)) ** 0.5
    middle_x, middle_y = int(u[BOX_X].item() * width), int(u[BOX_Y].item() * height)
    half_x, half_y = int(side * width / 2), int(side * height / 2)
    left, right = max(0, middle_x - half_x), min(width, middle_x + half_x)
    top, bottom = max(0, middle_y - half_y), min(height, middle_y + half_y)
    partner = _partner(len(images), u)
    mixed = images.clone()
    mixed[:, :, top:bottom, left:right] = images.roll(partner, 0)[:, :, top:bottom, left:right]
    share = 1 - (right - left) * (bottom - top) / (height * width)
    return mixed, soft(labels, labels.roll(partner, 0), classes, share)


def soft(labels: Tensor, others: Tensor, classes: int, share: float) -> Tensor:
    """Return (N, classes) float32: `share` of the label, the rest of the other."""
    own, partner = F.one_hot(labels, classes).float(), F.one_hot(others, classes).float()
    return own * share + partner * (1 - share)


def _partner(count: int, u: Tensor) -> int:
    """Return how far the batch is rolled to give each image a partner other than itself."""
    return 1 + int(u[PARTNER].item() * (count - 1)) if count > 1 else 0


def beta(u: Tensor, alpha: float) -> float:
    """Return a draw of Beta(alpha, alpha), by Jöhnk's method from uniforms."""
    powers = u[:BOX_X].double() ** (1 / alpha)
    x, y = powers[0::2], powers[1::2]
    total = x + y
    fits = ((total <= 1) & (total > 0)).nonzero()[:, 0]
    # The first pair that fits; for alpha up to 2 none of 64 does once in 100,000 batches.
    first = int(fits[0]) if len(fits) else 0
    return (x[first] / total[first]).item() if total[first] > 0 else 0.5
