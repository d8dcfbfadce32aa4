"""Pictures of what the network sees: `python transforms.py --dataset mnist --augment pad:2,crop
--out sheet.png`.
"""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import configs
import data
import opts
from base import process
from base.arguments import Parser
from base.errors import clear_errors
from base.files import is_our_picture, refuse_target, whole_file
from loading.plan import Plan
from report.contact import signed

# Rows and columns of the sheet: images, and how often each is drawn.
IMAGES = 8
DRAWS = 8
# Pixels between two images.
GAP = 2


def main(argv: list[str] | None = None) -> None:
    """Read main.py's options and --out, and write the sheet."""
    parser = Parser(prog="transforms.py", add_help=False, allow_abbrev=False)
    about = "the picture, PNG (default: %(default)s)"
    parser.add_argument("--out", type=Path, default=Path("sheet.png"), help=about)
    own, others = parser.parse_known_args(argv)
    if {"-h", "--help"} & set(others):
        # The options of main.py follow.
        parser.print_help()
    if not own.out.parent.is_dir():
        parser.error(f"argument --out: there is no folder {own.out.parent}")

    with clear_errors(opts.WAYS_OUT):
        refuse_target(own.out, is_ours=is_our_picture)
        options = opts.parse(others, prog="transforms.py")
        train, _ = configs.open_both(options)
        pipeline = configs.make_pipeline(options, options.steps)
        plan = Plan(len(train), IMAGES, options.manualSeed, limit=IMAGES)
        loader = data.make_loader(train, pipeline, plan, torch.device("cpu"))
        columns = []
        for epoch in range(DRAWS):
            batch = next(iter(loader.epoch(epoch)))
            classes = len(train.classes)
            images, _ = pipeline.mix(batch.images, batch.labels, classes, epoch, 0)
            columns.append(images)
        save(torch.stack(columns, 1), own.out)
        rows = f"{len(columns[0])} images, a row each"
        print(f"{own.out}: {rows}, {DRAWS} draws of {options.augment}")


def save(images: Tensor, path: Path) -> None:
    """Write (rows, columns, 3, H, W) uint8 as one picture."""
    rows, columns, _, height, width = images.shape
    size = rows * (height + GAP) - GAP, columns * (width + GAP) - GAP
    sheet = np.full((*size, 3), 255, np.uint8)

    for row, column in np.ndindex(rows, columns):
        top, left = row * (height + GAP), column * (width + GAP)
        pixels = images[row, column].permute(1, 2, 0).numpy()
        sheet[top : top + height, left : left + width] = pixels

    scale = max(1, 96 // height)
    picture = Image.fromarray(sheet)
    picture = picture.resize((size[1] * scale, size[0] * scale), Image.Resampling.NEAREST)

    with whole_file(path, "wb", named=True) as file:
        picture.save(file, "PNG", pnginfo=signed())


if __name__ == "__main__":
    process.begin()
    main()
