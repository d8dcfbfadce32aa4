"""main.py as a rank over the stand-in, under torchrun.

DDP first compares the shapes that its ranks have, by way of the device, where all that comes back
is zero: that alone is left out. NCCL's collectives do nothing; gloo's, on the host, are real.
"""

import os
import sys
from pathlib import Path

# DDP warns of a search for unused parameters, as main.py says.
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
torch.nn.parallel.distributed._verify_param_shape_across_processes = lambda *_: None

import main
import opts
from base.errors import clear_errors

if __name__ == "__main__":
    with clear_errors(opts.WAYS_OUT):
        main.main(sys.argv[1:])
