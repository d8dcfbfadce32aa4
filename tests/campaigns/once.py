"""Test sets of 1 to 50 images on 1 to 3 ranks: every image is counted once, whatever the batch."""

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from rig import scratch, script

import data
from datasets.images import ArrayImages
from loading.plan import Plan
from training import metrics
from training.ranks import Ranks
from transforms import Pipeline

MOST = 50


def counted(rank: int, world: int, place: str) -> None:
    """Count every test set on one rank, as testing does; rank 0 writes the sums."""
    torch.set_num_threads(1)
    ranks = Ranks(rank, world, rank)
    if world > 1:
        dist.init_process_group(
            "gloo", init_method=f"file://{place}.store", rank=rank, world_size=world
        )
    found = []
    for count in range(1, MOST + 1):
        images = ArrayImages(
            torch.zeros(count, 1, 8, 8, dtype=torch.uint8),
            torch.zeros(count).long().numpy(),
            ["a", "b"],
            "",
        )
        plan = Plan(count, 7, rank=rank, world=world)
        loader = data.make_loader(images, Pipeline([], 8, 8), plan, torch.device("cpu"))
        sums, indices = metrics.Sums(torch.device("cpu")), []
        for batch in loader.epoch(0):
            logits = torch.zeros(len(batch.labels), 2)
            sums.add(torch.zeros(()), logits, batch.labels)
            indices.append(torch.from_numpy(batch.indices))
        every = ranks.collect(torch.cat(indices))
        total = ranks.sum(sums.values.clone())
        found.append(
            int(total[3]) == count
            and (rank > 0 or every.sort().values.tolist() == list(range(count)))
        )
    if rank == 0:
        Path(place).write_text(str(sum(found)))
    if world > 1:
        dist.destroy_process_group()


def run(trials: int = 150, seed: int = 1) -> dict[str, Any]:
    right = 0
    with scratch() as base:
        for world in (1, 2, 3):
            place = base / str(world)
            multiprocessing.spawn(counted, (world, str(place)), world)
            right += int(place.read_text())
    return {"trials": 3 * MOST, "each_image_once": right}


if __name__ == "__main__":
    script("12 each image once", run, 150)
