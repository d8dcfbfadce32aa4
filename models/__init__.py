"""The table of networks. One line adds one. Nothing here imports torch: `python main.py --help` reads this table."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """A network's builder, as "module:function" below this package, its smallest input and the rate that trains it.

    The builder is called as function(classes, size, stem) with size in pixels and stem "fast" or "fine".
    """

    builder: str
    smallest: int  # pixels a side
    LR: float  # the first learning rate of the regime
    about: str


NETWORKS = {
    "alexnet": Entry("alexnet:alexnet", 16, 1e-2, "Krizhevsky 2012, two columns"),
    "alexnetowt": Entry("alexnet:alexnetowt", 16, 1e-2, "Krizhevsky 2014, one column (= torchvision's alexnet)"),
    "alexnetowtbn": Entry("alexnet:alexnetowtbn", 16, 1e-2, "alexnetowt with batch norm"),
    "alexnetbn": Entry("alexnet:alexnetbn", 16, 1e-2, "alexnetowtbn with average pooling and one linear layer"),
}
