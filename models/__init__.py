"""The table of networks. One line adds one, a name in TORCHVISION one of torchvision's.

Nothing here imports torch: `python main.py --help` reads this table.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """A network's builder, as "module:function" below this package, its smallest input and the rate
    that trains it.

    The builder is called as function(classes, size, stem), or function(name, classes, size, stem)
    where it is written "module:function:name", with size in pixels and stem "fast" or "fine".
    heads: prefixes of the auxiliary heads' names.
    """

    builder: str
    # Pixels a side.
    smallest: int
    about: str
    # The first learning rate of the regime.
    lr: float = 1e-2
    # A name in schedule.REGIMES.
    regime: str = "torch7"
    # The highest rate of one cycle, None: the regime's first.
    peak: float | None = None
    heads: tuple[str, ...] = ()
    # torchvision's name of the network with the same weights.
    torchvision_name: str = ""

    @property
    def highest_rate(self) -> float:
        """The highest rate of one cycle."""
        return self.lr if self.peak is None else self.peak


OURS = {
    "alexnet": Entry("alexnet:alexnet", 16, "Krizhevsky 2012, two columns"),
    "alexnetowt": Entry(
        "alexnet:alexnetowt",
        16,
        "Krizhevsky 2014, one column (torchvision's alexnet)",
        torchvision_name="alexnet",
    ),
    "alexnetowtbn": Entry("alexnet:alexnetowtbn", 16, "alexnetowt with batch norm"),
    "alexnetbn": Entry(
        "alexnet:alexnetbn", 16, "alexnetowtbn with average pooling and one linear layer", peak=0.05
    ),
    "overfeat": Entry("overfeat:overfeat", 16, "Sermanet 2013, fast model"),
    "vgg": Entry("vgg:vgg11", 16, "Simonyan 2014, column A", torchvision_name="vgg11"),
    "vgg11": Entry("vgg:vgg11", 16, "column A", torchvision_name="vgg11"),
    "vgg13": Entry("vgg:vgg13", 16, "column B", torchvision_name="vgg13"),
    "vgg16": Entry("vgg:vgg16", 16, "column D", torchvision_name="vgg16"),
    "vgg19": Entry("vgg:vgg19", 16, "column E", torchvision_name="vgg19"),
    "vggbn": Entry("vgg:vggbn", 16, "column A, batch norm after hidden linear layers"),
    "vggbnv2": Entry("vgg:vggbnv2", 16, "column A, average pooling, batch norm, one linear layer"),
    "vgg11bn": Entry(
        "vgg:vgg11bn",
        16,
        "column A, batch norm after convolutions (torchvision's vgg11_bn)",
        torchvision_name="vgg11_bn",
        peak=0.002,
    ),
    "vgg13bn": Entry(
        "vgg:vgg13bn", 16, "column B, the same", peak=0.002, torchvision_name="vgg13_bn"
    ),
    "vgg16bn": Entry(
        "vgg:vgg16bn", 16, "column D, the same", peak=0.002, torchvision_name="vgg16_bn"
    ),
    "vgg19bn": Entry(
        "vgg:vgg19bn", 16, "column E, the same", peak=0.002, torchvision_name="vgg19_bn"
    ),
    "googlenet": Entry(
        "googlenet:googlenet",
        16,
        "Szegedy 2014, batch norm",
        heads=("aux1", "aux2"),
        torchvision_name="googlenet",
        peak=0.05,
    ),
    "inception2": Entry(
        "inception2:inception2", 16, "Ioffe 2015 without batch norm", heads=("head",)
    ),
    "ninbn": Entry(
        "nin:ninbn", 16, "network in network, batch norm", lr=0.1, regime="nin", peak=0.03
    ),
    "squeezenet": Entry("squeezenet:squeezenet", 16, "Iandola 2016, simple bypass"),
    "resnet9": Entry("resnet9:resnet9", 8, "Page 2018, for small images", peak=0.2),
    "resnet9s": Entry("resnet9:resnet9s", 8, "resnet9 with half the channels", peak=0.2),
    "resnet9xs": Entry("resnet9:resnet9xs", 8, "resnet9 with a quarter of the channels", peak=0.2),
}

# torchvision's classification networks, `list_models(module=torchvision.models)`, but for the names
# that ours bear.
_NAMES = """
    alexnet convnext_base convnext_large convnext_small convnext_tiny densenet121 densenet161
    densenet169 densenet201 efficientnet_b0 efficientnet_b1 efficientnet_b2 efficientnet_b3
    efficientnet_b4 efficientnet_b5 efficientnet_b6 efficientnet_b7 efficientnet_v2_l
    efficientnet_v2_m efficientnet_v2_s googlenet inception_v3 maxvit_t mnasnet0_5 mnasnet0_75
    mnasnet1_0 mnasnet1_3 mobilenet_v2 mobilenet_v3_large mobilenet_v3_small regnet_x_16gf
    regnet_x_1_6gf regnet_x_32gf regnet_x_3_2gf regnet_x_400mf regnet_x_800mf regnet_x_8gf
    regnet_y_128gf regnet_y_16gf regnet_y_1_6gf regnet_y_32gf regnet_y_3_2gf regnet_y_400mf
    regnet_y_800mf regnet_y_8gf resnet101 resnet152 resnet18 resnet34 resnet50 resnext101_32x8d
    resnext101_64x4d resnext50_32x4d shufflenet_v2_x0_5 shufflenet_v2_x1_0 shufflenet_v2_x1_5
    shufflenet_v2_x2_0 squeezenet1_0 squeezenet1_1 swin_b swin_s swin_t swin_v2_b swin_v2_s
    swin_v2_t vgg11 vgg11_bn vgg13 vgg13_bn vgg16 vgg16_bn vgg19 vgg19_bn vit_b_16 vit_b_32 vit_h_14
    vit_l_16 vit_l_32 wide_resnet101_2 wide_resnet50_2
"""
TORCHVISION = tuple(_NAMES.split())
# Smallest inputs of torchvision's that differ from 32 pixels.
_SMALLEST = {"alexnet": 63, "inception_v3": 75, "squeezenet1_0": 21, "squeezenet1_1": 17}
_HEADS = {"inception_v3": ("AuxLogits",)}
_PEAKS = dict.fromkeys(("vgg11_bn", "vgg13_bn", "vgg16_bn", "vgg19_bn"), 0.002)

# Names of timm's begin so.
TIMM = "timm:"


class Networks(dict[str, Entry]):
    """The table by name; any name after `timm:` is in it, timm itself says whether it has that."""

    def __contains__(self, name: object) -> bool:
        return super().__contains__(name) or (isinstance(name, str) and name.startswith(TIMM))

    def __missing__(self, name: str) -> Entry:
        if not name.startswith(TIMM):
            raise KeyError(name)
        return Entry(f"from_timm:build:{name.removeprefix(TIMM)}", 16, "timm's")


NETWORKS = Networks(
    {
        name: Entry(
            f"peers:build:{name}",
            _SMALLEST.get(name, 32),
            "torchvision's",
            heads=_HEADS.get(name, ()),
            peak=_PEAKS.get(name),
            torchvision_name=name,
        )
        for name in TORCHVISION
    }
    | OURS
)
