"""timm's networks by their names."""

from pathlib import Path

import pytest
import torch
from rig import make_images, on_folder

import main
import model
import opts
from assembly import loaders
from base.errors import Refused
from models import NETWORKS, from_timm

timm = pytest.importorskip("timm")


def test_the_names_need_no_timm_to_be_read() -> None:
    assert opts.parse(["--dataset", "mnist", "--netType", "timm:resnet18"]).expID == "timm-resnet18"
    assert "timm:anything" in NETWORKS
    assert "tim:resnet18" not in NETWORKS
    with pytest.raises(KeyError):
        NETWORKS["tim:resnet18"]


@pytest.mark.parametrize(("name", "size"), [("resnet18", 64), ("vit_tiny_patch16_224", 96)])
def test_a_network_of_timm_gives_logits_of_our_classes(name: str, size: int) -> None:
    network = model.create(f"timm:{name}", ["a", "b", "c"], size).eval()
    with torch.no_grad():
        logits = network(torch.zeros(2, 3, size, size, dtype=torch.uint8))
    assert logits.shape == (2, 3)
    # The spec builds it again.
    assert model.build(network.spec).state_dict().keys() == network.state_dict().keys()


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(Refused, match="did you mean 'timm:resnet18'") as refused:
        model.create("timm:resnet118", 3, 64)
    # It is not its size that is wrong.
    assert "pixels" not in str(refused.value)
    assert refused.value.limit == ""
    with pytest.raises(Refused, match=r"timm has no network 'q0'$"):
        model.create("timm:q0", 3, 64)


def test_weights_of_timm_come_with_its_mean_and_deviation(tmp_path: Path) -> None:
    theirs = timm.create_model("vit_tiny_patch16_224", num_classes=3, img_size=96)
    torch.save(theirs.state_dict(), tmp_path / "w.pt")
    network = model.create("timm:vit_tiny_patch16_224", 3, 96)
    value = model.weights.read(str(tmp_path / "w.pt"))
    assert model.load_weights(network, value, "w.pt") == []
    about = timm.get_pretrained_cfg("vit_tiny_patch16_224")
    assert network.normalise.mean.tolist() == list(about.mean) == [0.5, 0.5, 0.5]
    pixels = torch.randint(0, 256, (2, 3, 96, 96), dtype=torch.uint8)
    with torch.no_grad():
        expected = theirs.eval()((pixels / 255 - 0.5) / 0.5)
        torch.testing.assert_close(network.eval()(pixels), expected, atol=1e-4, rtol=1e-3)


def test_published_weights_are_kept_with_what_they_need(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(from_timm, "KEPT", tmp_path / "cache" / "timm")
    create, asked = timm.create_model, list[bool]()

    def fetched(name: str, pretrained: bool = False, **more: object) -> torch.nn.Module:
        asked.append(pretrained)
        return create(name, **more)

    # Where timm fetches from cannot be reached here.
    monkeypatch.setattr(timm, "create_model", fetched)
    path = model.published_weights("timm:resnet18")
    assert asked == [True]
    network = model.create("timm:resnet18", 3, 64)
    fresh = model.load_weights(network, model.weights.read(path), path)
    assert fresh == ["body.fc.weight", "body.fc.bias"]

    def refused(name: str, **more: object) -> torch.nn.Module:
        raise OSError("no network")

    monkeypatch.setattr(timm, "create_model", refused)
    assert model.published_weights("timm:resnet18") == path
    with pytest.raises(Refused, match="cannot be had: OSError: no network; with a file of them"):
        model.published_weights("timm:resnet34")


def test_a_run_takes_the_sizes_of_timms_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = make_images(tmp_path / "images", 24)
    more = ["--netType", "timm:test_resnet", "--nEpochs", "1", "--expDir", str(tmp_path)]
    about = timm.get_pretrained_cfg("test_resnet")
    side = about.input_size[-1]
    words = ["--dataset", "folder", "--data_dir", str(images), "--GPU", "-1", "--nThreads", "0"]
    main.main([*words, *more, "--logger", "none"])
    assert f"{round(side / about.crop_pct)} -> {side}," in capsys.readouterr().out
    best = tmp_path / "folder" / "timm-test_resnet" / "best.pt"
    assert model.load(str(best)).spec.crop_size == side
    # So does a test of weights that say no sizes, which published ones do not.
    torch.save(model.load(str(best)).body.state_dict(), tmp_path / "plain.pt")
    tested = ["--test", "--retrain", str(tmp_path / "plain.pt"), *more[:2], *more[4:]]
    main.main([*words, *tested, "--logger", "none"])
    assert f"{round(side / about.crop_pct)} -> {side}," in capsys.readouterr().out
    # All of an image is shown where that is asked for, and decoded pixels are large enough.
    options = opts.parse([*words, *more, "--fit", "pad", "--decoded", "ram"])
    options.augment, options.netType = "resizedcrop,flip", "timm:vit_base_patch16_384"
    loaders._settle_sizes(options)
    assert (options.imageSize, options.cropSize) == (384, 384)
    assert options.decodedSize == 480
    # Sizes that are given are taken.
    main.main([*on_folder(images, *more, "--overwrite"), "--logger", "none"])
    assert "24 -> 20," in capsys.readouterr().out
