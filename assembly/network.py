"""The network of a run, and where its weights come from."""

import torch

import model
from assembly.pipelines import statistics
from base.archive import Plain
from base.errors import Refused
from base.text import listed
from data import AnyLoader, Images
from datasets.images import display_names
from model import Network, Spec
from models import OURS, weights
from models.layers import SMALL
from models.recompute import recompute
from options.checks import unfitting
from options.table import Options
from run.checkpoint import Saved
from run.memory import room_for
from run.run import Run
from training.batchnorm import synchronise

# What a test takes from the weights: a field of theirs, and the option that goes before it.
TESTED_BY = {
    "net_type": "netType",
    "image_size": "imageSize",
    "crop_size": "cropSize",
    "stem": "stem",
    "interpolation": "interpolation",
    "exif": "exif",
    "fit": "fit",
}


def make_network(options: Options, run: Run, loader: AnyLoader) -> Network:
    """Return the network on the run's device, with its weights where a file brings them.

    Raises Refused.
    """
    # Names for people are kept with the weights, where predict.py finds them.
    images = loader.images
    shown = display_names(images)
    network = model.build(_spec(options, images, tuple(shown) if shown != images.classes else ()))
    if options.netType not in OURS:
        model.refuse_size(network)
    if options.syncBN and run.ranks.world > 1:
        synchronise(network, run.step.device)
    if options.freeze:
        model.freeze(network, options.freeze)
    if run.saved is not None:
        _refuse_other(network.spec, run.saved)
        for name in sorted({"retrain", "pretrained"} & options.changed.keys()):
            begins = f"--{name} is of a run that begins, and this one resumes"
            raise Refused(f"{begins}: leave it out, or name another --expID")
    else:
        _initialise(options, run, network, loader)
    if options.optimize and not recompute(network):
        run.console.say(f"--optimize changes nothing: {options.netType} repeats no blocks")
    with room_for("the network", run.step.device):
        return network.to(run.step.device).to(memory_format=torch.channels_last)


def _spec(options: Options, images: Images, display_names: tuple[str, ...]) -> Spec:
    """Return what the network of these options is, for these classes."""
    return Spec(
        options.netType,
        tuple(images.classes),
        options.imageSize,
        options.cropSize,
        options.stem,
        options.interpolation,
        options.exif,
        display_names,
        options.fit,
    )


def _initialise(options: Options, run: Run, network: Network, loader: AnyLoader) -> None:
    """Fill the network from a file of weights; without one measure mean and deviation of the
    images.
    """
    path = weights_path(options, run)
    if not path:
        with run.ranks.in_turn("statistics"):
            network.normalise.set(*statistics(options, loader.images, loader))
        return

    value = weights.read(path)
    fresh = model.load_weights(network, value, path)
    run.console.say(_describe_weights(network, path, model.spec_of(value, path), fresh))


def weights_path(options: Options, run: Run) -> str | None:
    """Return the file of weights that is asked for, None for none. Raises Refused."""
    if not options.pretrained:
        return options.retrain
    with run.ranks.in_turn("weights"):
        return model.published_weights(options.netType)


def _describe_weights(network: Network, path: str, spec: Spec | None, fresh: list[str]) -> str:
    """Say what of a file is kept, and what begins at random."""
    count = len(network.state_dict())
    kept = f"{count - len(fresh)} of {count} tensors kept, with mean and deviation"
    text = f"weights   {path}: {kept}"
    if fresh:
        return f"{text}; at random: {', '.join(fresh)}"
    if spec is not None and spec.classes != network.spec.classes:
        was, now = listed(list(spec.classes), 3), listed(list(network.spec.classes), 3)
        text += f"; also the last layer, though it was trained for {was} and not for {now}"
    return text


def settle_tested(options: Options) -> tuple[Plain, Spec | None]:
    """Take what was not given of a test from the weights, as predict.py does: network and stem,
    sizes, interpolation, EXIF.

    Returns the file's content and what it says, (None, None) for published weights. Raises Refused.
    """
    if options.retrain is None:
        return None, None
    value = weights.read(options.retrain)
    spec = model.spec_of(value, options.retrain)
    if spec is not None:
        for field, name in TESTED_BY.items():
            if name not in options.given:
                setattr(options, name, getattr(spec, field))
        # A test has a folder of its own, called after the network.
        if "expID" not in options.given:
            options.expID = f"{options.usual_name}-test"
        for message in unfitting(options):
            raise Refused(f"{options.retrain}: {message}")
    return value, spec


def make_tested_network(
    options: Options, run: Run, images: Images, value: Plain, spec: Spec | None
) -> Network:
    """Return the network of a test alone, with all of its weights from the file. Raises Refused."""
    path = weights_path(options, run)
    assert path is not None
    shown = spec.display_names if spec is not None else ()
    network = model.build(_spec(options, images, shown))
    fresh = model.load_weights(network, weights.read(path) if value is None else value, path)
    if missing := model.without_heads(network, fresh):
        classes = f"{images.where} has {len(images.classes)} classes"
        raise Refused(
            f"{path} was made for another number of classes: {classes}, and {', '.join(missing)} "
            "would be random: name the images that it was made for"
        )
    with room_for("the network", run.step.device):
        return network.to(run.step.device).to(memory_format=torch.channels_last)


def _refuse_other(spec: Spec, saved: Saved) -> None:
    """Raise Refused where the checkpoint that a run resumes from is of another network or other
    classes.
    """
    before = Spec.from_plain(saved.spec)
    names = {"netType": "net_type", "classes": "classes", "stem": "stem"}

    for shown, name in names.items():
        was, now = getattr(before, name), getattr(spec, name)
        if was == now:
            continue
        if name == "classes":
            gone, new = sorted({*was} - {*now}), sorted({*now} - {*was})
            was = f"{len(was)}, with {listed(gone)}" if gone else f"{len(was)}"
            now = f"{len(now)}, with {listed(new)}" if new else f"{len(now)}"
        raise Refused(
            f"{saved.path} has {shown} {was}, not {now}: leave that as it was, or name another "
            "--expID"
        )

    if (before.crop_size < SMALL) != (spec.crop_size < SMALL):
        raise Refused(
            f"{saved.path} was trained at {before.crop_size} pixels, where {spec.net_type} has "
            "other layers than "
            f"at {spec.crop_size}"
        )
