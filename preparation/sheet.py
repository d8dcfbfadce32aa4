"""Pictures of what the network sees: `python transforms.py --dataset mnist --augment pad:2,crop --out sheet.png`."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import augmentation
import configs
import data
import opts
from base.arguments import Parser
from base.errors import clear_errors
from base.files import whole_file
from loading.plan import Plan

IMAGES, DRAWS = 8, 8  # rows and columns of the sheet
GAP = 2  # pixels between two images


def main(argv: list[str] | None = None) -> None:
    """Read main.py's options and --out, and write the sheet."""
    parser = Parser(prog="transforms.py", add_help=False, allow_abbrev=False)
    parser.add_argument("--out", type=Path, default=Path("sheet.png"))
    own, arguments = parser.parse_known_args(argv)
    out = own.out
    if not out.parent.is_dir():
        parser.error(f"argument --out: there is no folder {out.parent}")
    with clear_errors():
        options = opts.parse(arguments)
        train, _ = configs.open_both(options)
        pipeline = configs.pipeline(options, augmentation.parse(options.augment))
        plan = Plan(len(train), IMAGES, options.manualSeed, limit=IMAGES)
        source = data.loader(train, pipeline, plan, torch.device("cpu"))
        columns = []
        for epoch in range(DRAWS):
            batch = next(iter(source.epoch(epoch)))
            images, _ = pipeline.mix(batch.images, batch.labels, len(train.classes), epoch, 0)
            columns.append(images)
        save(torch.stack(columns, 1), out)
        print(f"{out}: {len(columns[0])} images, a row each, {DRAWS} draws of {options.augment}")


def save(images: Tensor, path: Path) -> None:
    """Write (rows, columns, 3, H, W) uint8 as one picture."""
    rows, columns, _, height, width = images.shape
    sheet = np.full((rows * (height + GAP) - GAP, columns * (width + GAP) - GAP, 3), 255, np.uint8)
    for row in range(rows):
        for column in range(columns):
            top, left = row * (height + GAP), column * (width + GAP)
            sheet[top : top + height, left : left + width] = images[row, column].permute(1, 2, 0).numpy()
    scale = max(1, 96 // height)
    picture = Image.fromarray(sheet).resize((sheet.shape[1] * scale, sheet.shape[0] * scale), Image.Resampling.NEAREST)
    with whole_file(path, "wb") as file:
        picture.save(file, "PNG")


if __name__ == "__main__":
    main()
