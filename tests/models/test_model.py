"""Every network is the one its paper and its peers describe."""

import pytest
import torch
import torchvision
from torch import nn

from base.errors import Refused
from model import Network, Spec, build, create, load_weights, multiply_adds, parameter_count
from models import NETWORKS, OURS, TORCHVISION, peers
from models.layers import _pool_rows
from models.recompute import recompute
from training.ranks import Ranks
from training.schedule import make_schedule
from training.updater import Updater, make_optimizer

COUNTS = {
    "alexnet": 60_522_856,
    "alexnetowt": 61_100_840,
    "alexnetowtbn": 61_119_528,
    "alexnetbn": 2_729_512,
    "overfeat": 111_317_864,
    "vgg": 132_863_336,
    "vgg11": 132_863_336,
    "vgg13": 133_047_848,
    "vgg16": 138_357_544,
    "vgg19": 143_667_240,
    "vggbn": 132_879_720,
    "vggbnv2": 9_734_504,
    "vgg11bn": 132_868_840,
    "vgg13bn": 133_053_736,
    "vgg16bn": 138_365_992,
    "vgg19bn": 143_678_248,
    "googlenet": 13_004_888,
    "inception2": 19_124_528,
    "ninbn": 8_655_336,
    "squeezenet": 1_248_424,
    "resnet9": 7_088_680,
    "resnet9s": 1_904_392,
    "resnet9xs": 542_584,
}
DEEP = {
    "vgg",
    "vgg11",
    "vgg13",
    "vgg16",
    "vgg19",
    "vggbn",
    "vggbnv2",
    "inception2",
    "squeezenet",
}  # no batch norm: by fan-in
TWINS = {  # ours: torchvision's with the same weights
    "alexnetowt": "alexnet",
    "vgg11": "vgg11",
    "vgg13": "vgg13",
    "vgg16": "vgg16",
    "vgg19": "vgg19",
    "vgg11bn": "vgg11_bn",
    "vgg13bn": "vgg13_bn",
    "vgg16bn": "vgg16_bn",
    "vgg19bn": "vgg19_bn",
    "googlenet": "googlenet",
}


def pixels(count: int, size: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(
        0,
        256,
        (count, 3, size, size),
        dtype=torch.uint8,
        generator=torch.Generator().manual_seed(seed),
    )


def on_meta(name: str) -> Network:
    with torch.device("meta"):
        return create(name, 1000, 224)


@pytest.mark.parametrize("name", OURS)
def test_parameters_are_counted_as_published(name: str) -> None:
    assert parameter_count(on_meta(name)) == COUNTS[name]


def test_auxiliary_heads_are_counted_as_published() -> None:
    for name, without in (("googlenet", 6_624_904), ("inception2", 16_708_040)):
        heads = tuple(f"body.{head}." for head in OURS[name].heads)
        kept = [p for key, p in on_meta(name).named_parameters() if not key.startswith(heads)]
        assert sum(p.numel() for p in kept) == without


def test_resnet9_is_counted_as_published() -> None:
    # Page's has no bias in the linear layer.
    assert parameter_count(create("resnet9", 10, 32, stem="fine")) == 6_573_120 + 10


def test_resnet9_s_blocks_add_their_input() -> None:
    network = create("resnet9xs", 10, 32, stem="fine")
    torch.manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
    state = {key.removeprefix("body."): value for key, value in network.eval().state_dict().items()}
    functional = nn.functional

    def layer(images: torch.Tensor, name: str) -> torch.Tensor:
        images = functional.conv2d(images, state[f"{name}.0.weight"], padding=1)
        norm = [state[f"{name}.1.{part}"] for part in ("running_mean", "running_var")]
        scale = [state[f"{name}.1.{part}"] for part in ("weight", "bias")]
        return functional.batch_norm(images, *norm, *scale).relu()

    images = pixels(2, 32)
    x = layer(network.normalise(images), "features.0")
    x = functional.max_pool2d(layer(x, "features.1"), 2)
    x = x + layer(layer(x, "features.3.first"), "features.3.second")
    x = functional.max_pool2d(layer(x, "features.4"), 2)
    x = functional.max_pool2d(layer(x, "features.6"), 2)
    x = x + layer(layer(x, "features.8.first"), "features.8.second")
    x = functional.linear(
        x.flatten(2).max(2).values, state["classifier.weight"], state["classifier.bias"]
    )
    torch.testing.assert_close(network(images), x / 8, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [224, 100, 64, 63, 32, 28, 16])
@pytest.mark.parametrize("name", OURS)
def test_every_size_gives_logits(name: str, size: int) -> None:
    with torch.device("meta"):
        network = create(name, 7, size).eval()
        assert network(torch.zeros(2, 3, size, size, dtype=torch.uint8)).shape == (2, 7)


@pytest.mark.parametrize("stem", ["fast", "fine"])
@pytest.mark.parametrize("name", OURS)
def test_every_parameter_learns_from_small_images(name: str, stem: str) -> None:
    torch.manual_seed(1)
    network = create(name, 3, 28, stem=stem)
    logits = network(pixels(4, 28), heads=True)
    assert all(head.shape == (4, 3) for head in logits)
    assert len(logits) == 1 + len(OURS[name].heads)
    sum(nn.functional.cross_entropy(head, torch.tensor([0, 1, 2, 0])) for head in logits).backward()
    still = [
        key
        for key, p in network.named_parameters()
        if p.grad is None or not p.grad.isfinite().all() or not p.grad.any()
    ]
    assert still == []
    one = network.eval()(pixels(1, 28))
    assert isinstance(one, torch.Tensor)
    assert one.shape == (1, 3)


@pytest.mark.parametrize("name", ["alexnetbn", "googlenet", "squeezenet", "inception2"])
def test_what_is_exported_is_what_is_run(name: str) -> None:
    network = create(name, 5, 32).eval()
    images = pixels(2, 32)
    exported = torch.export.export(network, (images,)).module()
    torch.testing.assert_close(exported(images), network(images), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", OURS)
def test_initial_weights_are_he_s(name: str) -> None:
    network = create(name, 4, 32)
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 20_000:
            fan = module.weight[0, 0].numel() * module.weight.shape[1 if name in DEEP else 0]
            gain = 1 if name == "squeezenet" else 2  # as its authors': the bypasses add up
            assert module.weight.std().item() == pytest.approx((gain / fan) ** 0.5, rel=0.05)
        if isinstance(module, (nn.Conv2d, nn.Linear)) and module.bias is not None:
            assert not module.bias.any()


def test_the_peers_names_are_torchvision_s() -> None:
    assert tuple(torchvision.models.list_models(module=torchvision.models)) == TORCHVISION


@pytest.mark.parametrize(
    "name", ["resnet18", "mobilenet_v3_small", "squeezenet1_0", "vit_b_32", "inception_v3"]
)
def test_torchvision_s_networks_work_by_name(name: str) -> None:
    size = 96
    network = create(name, 4, size).eval()
    assert network(pixels(1, size)).shape == (1, 4)


def twins(name: str, size: int) -> tuple[Network, nn.Module]:
    """Our network and torchvision's with the same weights."""
    torch.manual_seed(3)
    more = (
        {"aux_logits": True, "transform_input": True, "init_weights": False}
        if name == "googlenet"
        else {}
    )
    theirs = torchvision.models.get_model(TWINS[name], weights=None, num_classes=20, **more)
    ours = create(name, 20, size)
    assert load_weights(ours, theirs.state_dict(), "theirs.pth") == []
    return ours, theirs


def normalised(images: torch.Tensor) -> torch.Tensor:
    return torchvision.transforms.functional.normalize(
        images.float() / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    )


def close(ours: torch.Tensor, theirs: torch.Tensor, relative: float) -> None:
    assert (ours - theirs).abs().max() <= relative * theirs.abs().max()


@pytest.mark.parametrize("name", TWINS)
def test_logits_are_torchvision_s(name: str) -> None:
    size = 96
    ours, theirs = twins(name, size)
    images = pixels(4, size)
    with torch.no_grad():
        close(ours.eval()(images), theirs.eval()(normalised(images)), 1e-5)
        for module in [*ours.modules(), *theirs.modules()]:
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        trained = theirs.train()(normalised(images))
        for head, their in zip(
            ours.train()(images, heads=True),
            (trained[0], trained[2], trained[1]) if name == "googlenet" else (trained,),
            strict=True,
        ):
            close(head, their, 2e-4)


def test_published_weights_are_checked_before_they_are_read(
    tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import hashlib

    import model

    monkeypatch.setenv("HOME", str(tmp_path))
    folder = tmp_path / ".cache" / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / "alexnet-owt-7be5be79.pth").write_bytes(b"something else")
    with pytest.raises(Refused, match="does not begin with 7be5be79"):
        model.published_weights("alexnetowt")
    monkeypatch.setattr(
        model, "digest_of", lambda path, kind: "7be5be79" + hashlib.sha256().hexdigest()
    )
    assert model.published_weights("alexnetowt").endswith("alexnet-owt-7be5be79.pth")
    with pytest.raises(Refused, match="no published weights for ninbn"):
        model.published_weights("ninbn")
    monkeypatch.setattr("base.fetch.urllib.request.urlopen", refuse)
    with pytest.raises(Refused, match=r"put vgg16-397923af\.pth into"):
        model.published_weights("vgg16")


def refuse(*_: object, **__: object) -> None:
    raise OSError("no network")


def test_data_parallel_files_load_and_another_class_count_starts_the_last_layers_anew() -> None:
    source, target = create("googlenet", 10, 32), create("googlenet", 3, 32)
    anew = load_weights(
        target, {f"module.{key}": value for key, value in source.state_dict().items()}, "file.pt"
    )
    assert {key.split(".")[1] for key in anew} == {"fc", "aux1", "aux2"}
    assert torch.equal(
        target.state_dict()["body.conv1.conv.weight"], source.state_dict()["body.conv1.conv.weight"]
    )
    assert target.body.fc.weight.shape[0] == 3


def test_what_does_not_fit_is_refused_with_names_and_shapes() -> None:
    network = create("alexnetbn", 10, 32)
    with pytest.raises(Refused, match=r"missing.*and \d+ more"):
        load_weights(network, {"features.0.weight": torch.zeros(64, 3, 5, 5)}, "file.pt")
    with pytest.raises(
        Refused, match=r"body\.features\.0\.weight is \[64, 3, 3, 3\], not \[64, 3, 5, 5\]"
    ):
        load_weights(
            network,
            network.state_dict() | {"body.features.0.weight": torch.zeros(64, 3, 3, 3)},
            "file.pt",
        )
    with pytest.raises(Refused, match="holds no weights"):
        load_weights(network, {"epoch": 3}, "file.pt")
    bad = network.state_dict() | {"body.features.1.bias": torch.full((64,), float("nan"))}
    with pytest.raises(Refused, match="not finite"):
        load_weights(network, bad, "file.pt")
    with pytest.raises(Refused, match=r"missing|unknown"):
        load_weights(
            create("squeezenet", 10, 64),
            torchvision.models.squeezenet1_0(num_classes=10).state_dict(),
            "file.pt",
        )


def test_weights_bring_their_normalisation() -> None:
    source, target = create("alexnetbn", 10, 32), create("alexnetbn", 10, 32)
    source.normalise.set((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    load_weights(target, source.state_dict(), "file.pt")
    assert target.normalise.mean.tolist() == pytest.approx([0.1, 0.2, 0.3])


def test_wrong_sizes_and_names_are_refused() -> None:
    with pytest.raises(Refused, match=r"at least 16 pixels"):
        create("vgg", 10, 15)
    with pytest.raises(Refused, match="unknown network"):
        create("lenet", 10, 32)
    with pytest.raises(Refused, match="2 classes"):
        create("vgg", 1, 32)


@pytest.mark.parametrize("name", ["alexnetowtbn", "vgg11bn", "ninbn"])
def test_recomputing_activations_changes_no_weight_and_no_buffer(name: str) -> None:
    states = []
    for optimize in (False, True):
        torch.manual_seed(4)
        network = create(name, 4, 28)
        names = list(network.state_dict())
        if optimize:
            recompute(network)
        assert list(network.state_dict()) == names
        updater = Updater(
            network,
            make_optimizer(network),
            make_schedule(lr=0.01, weight_decay=0, first=0),
            Ranks(),
        )
        for step in range(3):
            torch.manual_seed(step)
            updater.begin(step)
            loss = nn.functional.cross_entropy(
                network(pixels(6, 28, step)), torch.tensor([0, 1, 2, 3, 0, 1])
            )
            updater.backward(loss)
            updater.apply(loss, step, torch.arange(6).numpy())
        states.append(network.state_dict())
    for key, value in states[0].items():
        assert torch.equal(value, states[1][key]), key


def test_smallest_inputs_are_the_smallest() -> None:
    for name, entry in NETWORKS.items():
        if name in OURS or name.startswith(
            ("vit", "swin", "maxvit", "efficientnet", "regnet", "convnext", "densenet")
        ):
            continue
        with torch.device("meta"):
            create(name, 4, entry.smallest).eval()(
                torch.zeros(1, 3, entry.smallest, entry.smallest, dtype=torch.uint8)
            )


@pytest.mark.parametrize("name", OURS)
def test_a_fine_stem_sees_more_of_small_images(name: str) -> None:
    """VGG reads every pixel with either."""
    costs = {
        stem: multiply_adds(build(Spec(name, ("a", "b"), 32, 32, stem)))
        for stem in ("fast", "fine")
    }
    assert (
        costs["fine"] >= costs["fast"]
        if name.startswith("vgg")
        else (costs["fine"] > 1.5 * costs["fast"])
    )


@pytest.mark.parametrize("sizes", [(7, 3), (6, 3), (3, 7), (1, 4), (13, 6), (5, 5)])
def test_our_average_pool_has_the_windows_of_torchs(sizes: tuple[int, int]) -> None:
    length, cells = sizes
    images = torch.randn(2, 3, length, 4, generator=torch.Generator().manual_seed(1))
    expected = nn.functional.adaptive_avg_pool2d(images, (cells, 4))
    torch.testing.assert_close(_pool_rows(images, cells), expected)


def test_a_network_knows_the_size_of_images_and_of_their_parts() -> None:
    with torch.device("meta"):
        spec = create("alexnetbn", 3, 28, image_size=32).spec
        assert (spec.image_size, spec.crop_size, spec.classes) == (32, 28, ("0", "1", "2"))
        spec = create("alexnetbn", ["a", "b"], 28).spec
        assert (spec.image_size, spec.crop_size, spec.classes) == (28, 28, ("a", "b"))


@pytest.mark.parametrize("name", ["maxvit_t", "vit_b_32", "swin_t", "resnet18"])
@pytest.mark.parametrize("size", [224, 448])
def test_torchvisions_networks_are_built_for_the_size_asked_for(name: str, size: int) -> None:
    with torch.device("meta"):
        network = peers.build(name, 3, size, "fast").eval()
        assert network(torch.zeros(1, 3, size, size)).shape == (1, 3)


def test_torchvisions_network_is_not_drawn_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own drawing of inception_v3 takes a minute, and its values are not used."""

    def drawn(*_: object, **__: object) -> None:
        raise AssertionError

    monkeypatch.setattr(torch.nn.init, "trunc_normal_", drawn)
    assert isinstance(peers.build("inception_v3", 3, 299, "fast"), torch.nn.Module)
