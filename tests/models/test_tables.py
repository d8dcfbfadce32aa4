"""Each network's layers, one by one, are those of its paper's table, written down a second time; a
twin's are torchvision's.

A word a layer: 64:3/1+1 is a convolution to 64 channels, 3 x 3, of stride 1 and padding 1; max3/2+0
and mean3/2+0 are pools (c: they keep an odd border), grid6 a pool to 6 x 6; r is ReLU, bn batch
norm, fc a linear layer.
"""

from collections.abc import Callable

import pytest
import torch
import torchvision
from torch import nn

from model import create
from models import OURS
from models.layers import initialise
from models.recompute import recompute


def words(network: nn.Module) -> str:
    return " ".join(filter(None, map(word, network.modules())))


def word(layer: nn.Module) -> str:
    """Return what a layer is called here; nothing where it holds others."""
    match layer:
        case nn.Conv2d():
            assert layer.groups == 1
            assert layer.dilation == (1, 1)
            (kernel, _), (stride, _), (padding, _) = layer.kernel_size, layer.stride, layer.padding
            assert layer.kernel_size == (kernel, kernel)
            return f"{layer.out_channels}:{kernel}/{stride}+{padding}"
        case nn.MaxPool2d() | nn.AvgPool2d():
            kind = "max" if isinstance(layer, nn.MaxPool2d) else "mean"
            border = "c" if layer.ceil_mode else ""
            return f"{kind}{layer.kernel_size}/{layer.stride}+{layer.padding}{border}"
        case nn.AdaptiveAvgPool2d():
            size = layer.output_size
            return f"grid{size[0] if isinstance(size, tuple) else size}"
        case nn.BatchNorm2d() | nn.BatchNorm1d():
            return "bn" if layer.eps == 1e-5 else f"bn{layer.eps:g}"
        case nn.Linear():
            return f"fc{layer.out_features}"
        case nn.Dropout():
            return f"drop{layer.p:g}"
    return "r" if isinstance(layer, nn.ReLU) else ""


def alexnet(form: str) -> str:
    stem = {"large": "48:11/4+2", "fast": "48:5/2+2", "fine": "48:5/1+2"}[form]
    pool, grid, hidden = (
        ("max3/2+0", "grid6", "fc4096") if form == "large" else ("max3/2+1", "grid2", "fc512")
    )
    column = f"{stem} r {pool} 128:5/1+2 r {pool} 192:3/1+1 r 192:3/1+1 r 128:3/1+1 r {pool}"
    return f"{column} {column} {grid} drop0.5 {hidden} r drop0.5 {hidden} r fc10"


def one_weird_trick(form: str, norm: str, last_pool: bool) -> str:
    stem = {"large": "64:11/4+2", "fast": "64:5/2+2", "fine": "64:5/1+2"}[form]
    pool = "max3/2+0" if form == "large" else "max3/2+1"
    text = f"{stem}{norm} r {pool} 192:5/1+2{norm} r {pool} 384:3/1+1{norm} r"
    return f"{text} 256:3/1+1{norm} r 256:3/1+1{norm} r" + (f" {pool}" if last_pool else "")


def alexnetowt(form: str, norm: str = "") -> str:
    grid, hidden = ("grid6", "fc4096") if form == "large" else ("grid2", "fc512")
    layer = f"drop0.5 {hidden}{norm} r"
    return f"{one_weird_trick(form, norm, True)} {grid} {layer} {layer} fc10"


def alexnetbn(form: str) -> str:
    return f"{one_weird_trick(form, ' bn', form == 'large')} grid1 bn fc10"


def overfeat(form: str) -> str:
    hidden = "drop0.5 fc512 r drop0.5 fc512 r"
    middle = "512:3/1+1 r 1024:3/1+1 r 1024:3/1+1 r"
    if form == "large":
        first = "96:11/4+0 r max2/2+0 256:5/1+0 r max2/2+0"
        return f"{first} {middle} max2/2+0 grid5 drop0.5 fc3072 r drop0.5 fc4096 r fc10"
    stride = {"fast": 2, "fine": 1}[form]
    first = f"96:5/{stride}+2 r max3/2+1 256:5/1+2 r max3/2+1"
    return f"{first} {middle} max3/2+1 grid2 {hidden} fc10"


def vgg(form: str, counts: str = "11222", norm: str = "", head: str = "") -> str:
    """counts: convolutions before each of the five pools."""
    border, stride = ("", 1) if form == "large" else ("c", {"fast": 2, "fine": 1}[form])
    text = ""
    for width, count in zip((64, 128, 256, 512, 512), counts, strict=True):
        for _ in range(int(count)):
            text += f"{width}:3/{stride}+1{norm} r "
            stride = 1
        text += f"max2/2+0{border} "
    if head:
        return text + head
    grid, hidden = ("grid7", "fc4096") if form == "large" else ("grid1", "fc512")
    return f"{text}{grid} {hidden} r drop0.5 {hidden} r drop0.5 fc10"


def vggbn(form: str) -> str:
    grid, hidden = ("grid7", "fc4096") if form == "large" else ("grid1", "fc512")
    return vgg(form, head=f"{grid} {hidden} bn r drop0.5 {hidden} bn r drop0.5 fc10")


def ninbn(form: str) -> str:
    stem = {"large": "11/4+5", "fast": "5/2+2", "fine": "5/1+2"}[form]
    blocks = []
    for width, kernel in ((96, stem), (256, "5/1+2"), (384, "3/1+1"), (1024, "3/1+1")):
        single = f"{width}:1/1+0 bn0.001 r"
        blocks.append(f"{width}:{kernel} bn0.001 r {single} {single}")
    return " max3/2+1 ".join(blocks) + " grid1 fc10"


def squeezenet(form: str) -> str:
    def fire(squeeze: int, expand: int) -> str:
        return f"{squeeze}:1/1+0 r {expand}:1/1+0 r {expand}:3/1+1 r"

    first = {"large": "7/2+0 r max3/2+0c", "fast": "3/2+1 r", "fine": "3/1+1 r"}[form]
    early = [fire(16, 64), fire(16, 64), fire(32, 128), "max3/2+0c", fire(32, 128)]
    late = [fire(48, 192), fire(48, 192), fire(64, 256), "max3/2+0c", fire(64, 256)]
    return " ".join([f"96:{first}", *early, *late, "drop0.5 10:1/1+0"])


def inception2(form: str) -> str:
    """Ioffe & Szegedy 2015, arXiv 1502.03167, figure 5."""

    def conv(width: int, kernel: str = "1/1+0") -> str:
        return f"{width}:{kernel} r"

    def module(single: int, three: tuple[int, int], double: tuple[int, int], pool: str) -> str:
        kind, _, width = pool.partition(" ")
        branches = [conv(single)] if single else []
        branches += [conv(three[0]), conv(three[1], "3/1+1")]
        branches += [conv(double[0]), conv(double[1], "3/1+1"), conv(double[1], "3/1+1")]
        return " ".join([*branches, f"{kind}3/1+1", *([conv(int(width))] if width else [])])

    first = {"large": "7/2+3", "fast": "5/2+2", "fine": "3/1+1"}[form]
    pool = "max3/2+0c " if form == "large" else ""
    stem = f"64:{first} r {pool}64:1/1+0 r 192:3/1+1 r max3/2+0c"
    stages = [
        *(module(64, (64, 64), (64, 96), "mean 32"), module(64, (64, 96), (64, 96), "mean 64")),
        *(module(0, (128, 160), (64, 96), "max"), "576:2/2+0"),
        module(224, (64, 96), (96, 128), "mean 128"),
        module(192, (96, 128), (96, 128), "mean 128"),
        module(160, (128, 160), (128, 160), "mean 96"),
        module(96, (128, 192), (160, 192), "mean 96"),
        *(module(0, (128, 192), (192, 256), "max"), "1024:2/2+0"),
        module(352, (192, 320), (160, 224), "mean 128"),
        module(352, (192, 320), (192, 224), "max 128"),
    ]
    head = "mean5/3+0c grid4" if form == "large" else "grid4"
    return " ".join([stem, *stages, f"{head} 128:1/1+0 r fc768 r fc10 fc10"])


def resnet9(form: str, width: int) -> str:
    first = {"large": "7/2+3 bn r max3/2+1", "fast": "3/2+1 bn r", "fine": "3/1+1 bn r"}[form]
    text = f"{width}:{first}"
    for times, count in ((2, 3), (4, 1), (8, 3)):
        block = [f"{times * width}:3/1+1 bn r"] * count
        # One pool for all: it is listed where it stands first.
        text += " " + " ".join([block[0], "max2/2+0c", *block[1:]] if times == 2 else block)
    return f"{text} fc10"


TABLES: dict[str, Callable[[str], str]] = {
    "alexnet": alexnet,
    "alexnetowt": alexnetowt,
    "alexnetowtbn": lambda form: alexnetowt(form, " bn"),
    "alexnetbn": alexnetbn,
    "overfeat": overfeat,
    "vgg": vgg,
    "vgg11": vgg,
    "vgg13": lambda form: vgg(form, "22222"),
    "vgg16": lambda form: vgg(form, "22333"),
    "vgg19": lambda form: vgg(form, "22444"),
    "vggbn": vggbn,
    "vggbnv2": lambda form: vgg(form, head="grid1 bn fc10"),
    "vgg11bn": lambda form: vgg(form, norm=" bn"),
    "vgg13bn": lambda form: vgg(form, "22222", " bn"),
    "vgg16bn": lambda form: vgg(form, "22333", " bn"),
    "vgg19bn": lambda form: vgg(form, "22444", " bn"),
    "ninbn": ninbn,
    "squeezenet": squeezenet,
    "inception2": inception2,
    "resnet9": lambda form: resnet9(form, 64),
    "resnet9s": lambda form: resnet9(form, 32),
    "resnet9xs": lambda form: resnet9(form, 16),
}


@pytest.mark.parametrize("name", sorted(TABLES))
def test_layers_are_those_of_the_table(name: str) -> None:
    # Overfeat's unpadded convolutions leave nothing of 64 pixels.
    least = 71 if name == "overfeat" else 64
    with torch.device("meta"):
        assert words(create(name, 10, 224)) == TABLES[name]("large")
        if name != "inception2":
            assert words(create(name, 10, least)) == TABLES[name]("large")
        assert words(create(name, 10, least - 1)) == TABLES[name]("fast")
        assert words(create(name, 10, least - 1, stem="fine")) == TABLES[name]("fine")


def test_inception2_is_whole_from_its_own_sizes_on() -> None:
    with torch.device("meta"):
        # The auxiliary head's map is pooled to its 4 x 4 directly where it is smaller than 14.
        text = inception2("large").replace("mean5/3+0c ", "")
        assert words(create("inception2", 10, 64)) == text
        assert words(create("inception2", 10, 223)) == text


@pytest.mark.parametrize(
    "name", sorted(name for name, entry in OURS.items() if entry.torchvision_name)
)
def test_a_twin_s_layers_are_torchvision_s(name: str) -> None:
    with torch.device("meta"):
        ours = create(name, 10, 224)
        more = {"aux_logits": True, "init_weights": False} if name == "googlenet" else {}
        theirs = getattr(torchvision.models, OURS[name].torchvision_name)(num_classes=10, **more)

    def known(network: nn.Module) -> list[str]:
        # torchvision calls ReLU as a function in places.
        return [part for part in words(network).split() if part != "r"]

    if name != "googlenet":
        assert known(ours) == known(theirs)
        return

    # GoogLeNet's auxiliary heads stand at the end there, and some of its pools are functions.
    def heavy(network: nn.Module) -> list[str]:
        return sorted(part for part in known(network) if not part.startswith(("max", "grid")))

    assert heavy(ours) == heavy(theirs)


@pytest.mark.parametrize(
    ("stem", "first"),
    [
        ("fast", "64:5/2+2 64:1/1+0 192:3/1+1 max3/2+0c"),
        ("fine", "64:3/1+1 64:1/1+0 192:3/1+1 64:1"),
    ],
)
def test_small_googlenet_begins_gently(stem: str, first: str) -> None:
    with torch.device("meta"):
        small, large = create("googlenet", 10, 63, stem=stem), create("googlenet", 10, 64)
        assert words(large) == words(create("googlenet", 10, 224))
    text = words(small).replace(" bn0.001 r", "")
    assert text.startswith(first)
    # Beyond the first layers nothing differs.
    assert words(small)[-1250:] == words(large)[-1250:]


def test_every_network_is_looked_at() -> None:
    assert TABLES.keys() | {"googlenet"} == OURS.keys()


@pytest.mark.parametrize("name", ["googlenet", "inception2"])
def test_a_network_with_heads_has_one_output_in_testing(name: str) -> None:
    """Of the body alone: that is what is exported, and what other programs load weights into."""
    body = create(name, 3, 32).body
    images = torch.zeros(2, 3, 32, 32)
    assert isinstance(body.eval()(images), torch.Tensor)
    heads = body.train()(images)
    assert {tuple(head.shape) for head in heads} == {(2, 3)}


@pytest.mark.parametrize("mode", ["fan_in", "fan_out"])
def test_weights_are_drawn_by_he(mode: str) -> None:
    """arXiv 1502.01852, equations 10 and 14: a variance of 2 over the connections."""
    torch.manual_seed(0)
    layers = nn.Conv2d(32, 64, 3), nn.Conv2d(64, 64, 3, groups=2), nn.Linear(500, 400)
    last = nn.Linear(400, 10)
    network = nn.Sequential(*layers, last)
    before = last.weight.detach().clone()
    initialise(network, mode)  # type: ignore[arg-type]
    for layer in layers:
        inputs = layer.weight[0].numel()
        outputs = layer.weight.numel() // layer.weight.shape[1]
        # A hidden linear layer is drawn by its inputs in either mode.
        count = outputs if mode == "fan_out" and isinstance(layer, nn.Conv2d) else inputs
        assert float(layer.weight.detach().std()) == pytest.approx((2 / count) ** 0.5, rel=0.03)
    # The last layer stays as torch draws it, and no bias is drawn.
    assert torch.equal(last.weight, before)
    assert all(not layer.bias.any() for layer in network)


class Counted(nn.Conv2d):
    """Counts its forward passes."""

    calls = 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return super().forward(images)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = Counted(3, 3, 3, padding=1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images + self.conv(images)


class Blocks(nn.Module):
    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count
        for number in range(count):
            self.add_module(f"block{number}", Block())

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        for number in range(self.count):
            images = self.get_submodule(f"block{number}")(images)
        return images


def sequence() -> nn.Module:
    return nn.Sequential(nn.Sequential(*(Counted(3, 3, 3, padding=1) for _ in range(6))))


@pytest.mark.parametrize("count", [2, 3, 4])
def test_what_a_network_repeats_is_computed_again(count: int) -> None:
    assert recompute(Blocks(count)) == (count if count > 2 else 0)


@pytest.mark.parametrize("made", [sequence, lambda: Blocks(6)])
def test_activations_are_computed_again_in_training_alone(made: Callable[[], nn.Module]) -> None:
    network = made()
    assert recompute(network) > 0
    counted = [module for module in network.modules() if isinstance(module, Counted)]
    images = torch.rand(2, 3, 8, 8, requires_grad=True)
    network.train()(images).sum().backward()
    assert {module.calls for module in counted} == {2}
    for module in counted:
        module.calls = 0
    network.eval()(images).sum().backward()
    with torch.no_grad():
        network.train()(images)
    assert {module.calls for module in counted} == {2}


@pytest.mark.parametrize("count", [4, 9, 16, 17, 30])
def test_a_long_sequence_is_computed_again_in_parts(count: int) -> None:
    layers: list[nn.Module] = []
    for number in range(count):
        layers += [nn.Conv2d(3, 3, 1)] + [nn.ReLU(inplace=True)] * (number % 3 == 0)
    network = nn.Sequential(nn.Sequential(*layers))
    assert recompute(network) == 1
    parts = network[0].parts()
    assert [layer for part in parts for layer in part] == layers
    longest = int(len(layers) ** 0.5) + 1
    # One may be a layer longer, for what overwrites its input.
    assert max(map(len, parts)) <= longest + 1
    assert len(parts) <= -(-len(layers) // longest)
    assert not any(isinstance(part[0], nn.ReLU) for part in parts)
