"""torchvision's classification networks, by their names there, with a head of our size."""

from torch import nn

from models.layers import use_average_pools


def build(name: str, classes: int, size: int, stem: str) -> nn.Module:
    """Return torchvision's network, untrained.

    size: pixels, which vision transformers are built for; stem: not used.
    """
    from torchvision.models import get_model

    more: dict[str, object] = {"num_classes": classes}
    if name.startswith("vit_"):
        more["image_size"] = size
    if name.startswith("maxvit"):
        more["input_size"] = (size, size)
    if name == "inception_v3":
        # Its own drawing takes a minute.
        more["init_weights"] = False

    return use_average_pools(get_model(name, weights=None, **more))
