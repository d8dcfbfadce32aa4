"""RandAugment and TrivialAugment: one of 14 operations an image, chosen and measured by its draws.

Cubuk et al. 2019, arXiv 1909.13719; Müller & Hutter 2021, arXiv 2103.10158. The operations and
their ranges are torchvision's. u lies on the host, so that choosing waits for no device.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from augmentation.colour import chain
from augmentation.geometry import affine
from augmentation.resize import like

# Images (N, 3, H, W), amount (N,) -> images.
Operation = Callable[[Tensor, Tensor], Tensor]


def brightness(images: Tensor, amount: Tensor) -> Tensor:
    """amount: factor - 1, as of the next two."""
    return _in_colour(images, amount, 0)


def contrast(images: Tensor, amount: Tensor) -> Tensor:
    return _in_colour(images, amount, 1)


def saturation(images: Tensor, amount: Tensor) -> Tensor:
    return _in_colour(images, amount, 2)


def _in_colour(images: Tensor, amount: Tensor, operation: int) -> Tensor:
    order = torch.full((len(images), 1), operation, device=images.device)
    return chain(images, (1 + amount)[:, None].expand(-1, 3), order)


def rotate(images: Tensor, amount: Tensor) -> Tensor:
    """amount: degrees."""
    return affine(images, angle=torch.deg2rad(amount), nearest=True)


def shear_x(images: Tensor, amount: Tensor) -> Tensor:
    """amount: the tangent. About the top left corner, as torchvision's."""
    shift = -amount * images.shape[2] / 2
    return affine(
        images,
        shear=torch.stack([amount, 0 * amount], 1),
        move=torch.stack([shift, 0 * shift], 1),
        nearest=True,
    )


def shear_y(images: Tensor, amount: Tensor) -> Tensor:
    shift = -amount * images.shape[3] / 2
    return affine(
        images,
        shear=torch.stack([0 * amount, amount], 1),
        move=torch.stack([0 * shift, shift], 1),
        nearest=True,
    )


def translate_x(images: Tensor, amount: Tensor) -> Tensor:
    """amount: pixels."""
    return affine(images, move=torch.stack([amount, 0 * amount], 1), nearest=True)


def translate_y(images: Tensor, amount: Tensor) -> Tensor:
    return affine(images, move=torch.stack([0 * amount, amount], 1), nearest=True)


def sharpness(images: Tensor, amount: Tensor) -> Tensor:
    """Move away from the image blurred by a 3 x 3 kernel; the border's pixels stay.

    amount: factor - 1.
    """
    if min(images.shape[2:]) < 3:
        return images
    values = images.float()
    kernel = torch.ones(3, 1, 3, 3, device=images.device)
    kernel[:, :, 1, 1] = 5
    blurred = values.clone()
    middle = torch.nn.functional.conv2d(values, kernel / 13, groups=3)
    blurred[:, :, 1:-1, 1:-1] = middle.round() if images.dtype == torch.uint8 else middle
    return like(blurred + (1 + amount)[:, None, None, None] * (values - blurred), images)


def posterize(images: Tensor, amount: Tensor) -> Tensor:
    """Keep the highest bits. amount: how many, 0 to 8."""
    step = 2.0 ** (8 - amount.round())[:, None, None, None]
    unit = 1 if images.dtype == torch.uint8 else 255
    return like((images.float() * unit / step).floor() * step / unit, images)


def solarize(images: Tensor, amount: Tensor) -> Tensor:
    """Invert what is at least `amount`, of 255."""
    most = 255 if images.dtype == torch.uint8 else 1
    return torch.where(images >= (amount / 255 * most)[:, None, None, None], most - images, images)


def autocontrast(images: Tensor, amount: Tensor) -> Tensor:
    """Stretch each channel to the whole range. amount: not used."""
    most = 255 if images.dtype == torch.uint8 else 1
    values = images.float()
    low, high = values.amin((2, 3), keepdim=True), values.amax((2, 3), keepdim=True)
    scale = torch.where(high > low, most / (high - low), torch.ones_like(high))
    return like((values - torch.where(high > low, low, torch.zeros_like(low))) * scale, images)


def equalize(images: Tensor, amount: Tensor) -> Tensor:
    """Make each channel's histogram level, as Pillow does. amount: not used."""
    most = 255 if images.dtype == torch.uint8 else 1
    levels = (images.float() * (255 // most)).round().long().flatten(2)  # (N, C, H W)
    if levels.numel() == 0:
        return images
    # In one dimension, for which a GPU has a deterministic way too.
    rows = torch.arange(levels.shape[0] * levels.shape[1], device=images.device)
    places = (levels + 256 * rows.view(*levels.shape[:2], 1)).flatten()
    counts = torch.zeros(256 * len(rows), dtype=torch.long, device=images.device)
    counts = counts.scatter_add_(0, places, torch.ones_like(places)).view(*levels.shape[:2], 256)
    last = levels.amax(2, keepdim=True)
    step = (levels.shape[2] - counts.gather(2, last)) // 255
    table = (counts.cumsum(2) - counts + step // 2) // step.clamp(min=1)
    result = table.clamp(0, 255).gather(2, levels)
    result = torch.where(step == 0, levels, result).view(images.shape)
    return result.to(torch.uint8) if most == 255 else (result / 255).to(images.dtype)


def identity(images: Tensor, amount: Tensor) -> Tensor:
    return images


# Operation, amounts at magnitude 0 and 1 (of RandAugment; of TrivialAugment), whether the sign is
# drawn.
OPERATIONS: tuple[tuple[Operation, tuple[float, float], tuple[float, float], bool], ...] = (
    (identity, (0, 0), (0, 0), False),
    (shear_x, (0, 0.3), (0, 0.99), True),
    (shear_y, (0, 0.3), (0, 0.99), True),
    (translate_x, (0, 150 / 331), (0, 32), True),
    (translate_y, (0, 150 / 331), (0, 32), True),
    (rotate, (0, 30), (0, 135), True),
    (brightness, (0, 0.9), (0, 0.99), True),
    (saturation, (0, 0.9), (0, 0.99), True),
    (contrast, (0, 0.9), (0, 0.99), True),
    (sharpness, (0, 0.9), (0, 0.99), True),
    (posterize, (8, 4), (8, 2), False),
    (solarize, (255, 0), (255, 0), False),
    (autocontrast, (0, 0), (0, 0), False),
    (equalize, (0, 0), (0, 0), False),
)
# Magnitudes are 0 to 30, 31 bins as torchvision's default.
MAX_MAGNITUDE = 30


def randaugment(images: Tensor, u: Tensor, layers: float = 2, magnitude: float = 9) -> Tensor:
    """Apply `layers` operations at one magnitude, 0 to 30.

    8 draws on the host: operation and sign of each layer. On a GPU see `policy_gpu`.
    """
    share = torch.full((len(images),), magnitude / MAX_MAGNITUDE)
    for layer in range(int(layers)):
        images = choose(images, u[:, 2 * layer], share, u[:, 2 * layer + 1], wide=False)
    return images


def trivial(images: Tensor, u: Tensor) -> Tensor:
    """Apply one operation of random magnitude. 3 draws on the host: operation, magnitude, sign."""
    share = (u[:, 1] * (MAX_MAGNITUDE + 1)).floor() / MAX_MAGNITUDE
    return choose(images, u[:, 0], share, u[:, 2], wide=True)


def choose(images: Tensor, pick: Tensor, share: Tensor, sign: Tensor, *, wide: bool) -> Tensor:
    """Apply operation number floor(14 pick[n]) to image n. pick, share, sign: (N,) on the host."""
    chosen = (pick * len(OPERATIONS)).long()
    result = images.clone()

    for number, (operation, *_) in enumerate(OPERATIONS):
        rows = (chosen == number).nonzero()[:, 0]
        if not len(rows) or operation is identity:
            continue

        side = images.shape[2] if operation is translate_y else images.shape[3]
        amount = amounts_of(number, share[rows], sign[rows], side, wide=wide)
        rows = rows.to(images.device)
        result[rows] = operation(images[rows], amount.to(images.device))

    return result


def amounts_of(number: int, share: Tensor, sign: Tensor, side: int, *, wide: bool) -> Tensor:
    """Return by how much operation `number` changes its images, (n,).

    share: of its range, sign: (n,) in [0, 1); side: pixels of the image that translations move
    along; wide: in TrivialAugment's range.
    """
    operation, narrow, broad, signed = OPERATIONS[number]
    low, high = broad if wide else narrow
    amount = low + (high - low) * share

    # RandAugment moves by a share of the image, TrivialAugment by pixels.
    if operation in (translate_x, translate_y) and not wide:
        amount = amount * side
    return torch.where(sign < 0.5, amount, -amount) if signed else amount
