"""Write what the installed torchvision says of its pretrained sets into the plugins that offer
them: `python plugins/write_figures.py`. A test of the sweep compares the two.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torchvision

from tvc_core import BackboneSpec, Registry

FOLDER = Path(__file__).resolve().parent
LICENSES = {"https://github.com/facebookresearch/SWAG/blob/main/LICENSE": "CC-BY-NC-4.0"}
"""The licenses that torchvision names, by the addresses that it gives. Of other sets it names none.
"""
HEAD = '''"""What torchvision says of its weights. Written by plugins/write_figures.py."""

from __future__ import annotations

from typing import Any

FIGURES: dict[tuple[str, str], dict[str, Any]] = {
'''


def main() -> None:
    """Write `figures.py` of each plugin that offers networks of torchvision's."""
    for path, text in texts().items():
        path.write_text(text, encoding="utf-8")
        print(f"wrote {path.relative_to(FOLDER)}")


def texts() -> dict[Path, str]:
    """Return the text of each file by its path."""
    found: dict[str, str] = {}
    for offer in Registry().all(BackboneSpec):
        if offer.spec.origin == "torchvision":
            for member in torchvision.models.get_model_weights(offer.spec.name):
                row = row_of((offer.spec.name, member.name), figures_of(member))
                found[offer.owner] = found.get(offer.owner, HEAD) + row
    return {
        FOLDER / owner / owner.replace("-", "_") / "figures.py": text + "}\n"
        for owner, text in found.items()
    }


def figures_of(member: Any) -> dict[str, Any]:
    """Return the fields of a `WeightsSpec` that a member of torchvision's weights enums gives."""
    meta = member.meta
    found = {"num_params": meta["num_params"], "gflops": meta["_ops"]}
    accuracy = meta["_metrics"]["ImageNet-1K"]["acc@1"]
    if not math.isnan(accuracy):  # as it is for features without a classifier
        found["acc1"] = accuracy
    if "license" in meta:
        found["license"] = LICENSES[meta["license"]]
    return found


def row_of(key: tuple[str, str], figures: dict[str, Any]) -> str:
    """Return an item of the mapping, formatted as ruff does."""
    items = [f"{name!r}: {value!r}" for name, value in figures.items()]
    row = f"    {key!r}: {{{', '.join(items)}}},"
    if len(row) > 100:
        row = "\n".join([f"    {key!r}: {{", *(f"        {item}," for item in items), "    },"])
    return row.replace("'", '"') + "\n"


if __name__ == "__main__":
    main()
