"""The tables of docs/ that are made from the code; `python tests/support/tables.py` renews them.

A table stands between two lines, `<!-- made: NAME -->` and `<!-- end -->`.
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import opts
from augmentation import AUGMENTATIONS, MIX
from base.arguments import kind_of
from datasets import DATASETS
from models import OURS

PLACE = re.compile(r"(<!-- made: (\w+) -->\n).*?(<!-- end -->)", re.S)


def options() -> str:
    """Return a table a group of options."""
    groups: dict[str, list[str]] = {}
    for name, field in opts.FIELDS.items():
        shown = field.metadata["shown"] or field.default
        option = f"`--{name.rstrip('_')}`"
        if kind_of(field) is bool:
            shown = "on" if field.default else "off"
            once = name in ("continue_", "overwrite", "test")
            option += "" if once else f", `--no-{name}`"
        row = f"| {option} | {shown} | {field.metadata['help']} |"
        groups.setdefault(field.metadata["group"], []).append(row)
    parts = [table(("option", "default", "meaning"), rows, title) for title, rows in groups.items()]
    return "\n".join(parts)


def datasets() -> str:
    rows = [
        f"| {name} | {s.imageSize} -> {s.cropSize} | {'by number' if s.own else s.nEpochs} | "
        f"`{s.augment}` | {s.about} |"
        for name, s in DATASETS.items()
    ]
    return table(("dataset", "imageSize -> cropSize", "epochs", "augment", "what"), rows)


def networks() -> str:
    import torch

    import model

    rows = []
    for name, entry in OURS.items():
        with torch.device("meta"):  # counted, never made
            count = model.parameter_count(model.create(name, 1000, 224))
        rows.append(f"| {name} | {count:,} | {entry.smallest} | {entry.about} |")
    return table(("netType", "parameters", "smallest", "source"), rows)


def augmentations() -> str:
    rows = []
    for name, entry in AUGMENTATIONS.items():
        values = [f"{v.name} {v.default:.3g} ({v.low:g} to {v.high:g})" for v in entry.values]
        draws = "a batch" if entry.stage == MIX else entry.draws
        rows.append(f"| {name} | {', '.join(values) or '-'} | {draws} | {entry.about} |")
    return table(("name", "values (default, range)", "draws", "what"), rows)


def table(heading: tuple[str, ...], rows: list[str], title: str = "") -> str:
    """Return a Markdown table, with a title above it if there is one."""
    above = [f"### {title}", ""] if title else []
    lines = ["| " + " | ".join(heading) + " |", "| " + " | ".join("---" for _ in heading) + " |"]
    return "\n".join([*above, *lines, *rows, ""])


MAKERS = {
    "options": options,
    "datasets": datasets,
    "networks": networks,
    "augmentations": augmentations,
}


def renewed(text: str) -> str:
    """Return a document with its tables made anew."""
    return PLACE.sub(lambda m: f"{m[1]}\n{MAKERS[m[2]]()}\n{m[3]}", text)


if __name__ == "__main__":
    for path in sorted((ROOT / "docs").glob("*.md")):
        path.write_text(renewed(path.read_text()))
