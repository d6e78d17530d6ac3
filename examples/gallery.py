"""Write a page, a class activation map and a row of `tvc bench` for each recipe of examples/.

`make gallery` calls it; PHOTO=my.jpg shows another photo than scikit-learn's.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from sklearn.datasets import load_sample_image
from torchvision.transforms.functional import to_pil_image

HERE = Path(__file__).parent
RECIPES = sorted([*HERE.glob("*.yaml"), *HERE.glob("recipes/*.yaml")])


def tvc(*args: str) -> str:
    """Run a command of tvc and return what it prints."""
    command = [sys.executable, "-m", "tvc_cli", *args]
    done = subprocess.run(command, capture_output=True, encoding="utf-8")
    if done.returncode:
        raise SystemExit(f"tvc {' '.join(args)}: {done.stderr.strip()}")
    return done.stdout


def pretrained(recipe: Path) -> bool:
    """Return whether the weights of a recipe are to be had; where not, say why."""
    command = [sys.executable, "-m", "tvc_cli", "build", str(recipe)]
    done = subprocess.run(command, capture_output=True, encoding="utf-8")
    if done.returncode:
        print(f"{recipe.name}: shown with random weights, since: {done.stderr.strip()}")
    return not done.returncode


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("build/gallery"), help="the folder")
    parser.add_argument("--photo", type=Path, help="the photo; default one of scikit-learn's")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    photo = given.photo or given.out / "photo.png"
    if given.photo is None:
        to_pil_image(load_sample_image("flower.jpg")).save(photo)
    has_bench = " bench " in tvc("--help")
    for recipe in RECIPES:
        # torch's own files may be out of reach; the paths and costs are the same without them
        real = pretrained(recipe)
        weights = "--weights" if real else "--no-weights"
        out = given.out / recipe.stem
        page, picture = f"{out}.html", f"{out}.png"
        common = (str(recipe), "--force", weights)
        tvc("inspect", *common, "--photo", str(photo), "--out", page)
        tvc("cam", *common[:1], str(photo), *common[1:], "--out", picture)
        print(f"{recipe.name}: {page}, {picture}")
        if not has_bench:
            print(f"{recipe.name}: no row of 'tvc bench', which tvc-export offers")
            continue
        leave = () if real else ("--set", "backbone.weights=null")
        row = json.loads(tvc("bench", str(recipe), "--rounds", "10", "--json", *leave))
        Path(f"{out}.bench.json").write_text(json.dumps(row, indent=1) + "\n", encoding="utf-8")
        print(f"{recipe.name}: {out}.bench.json")


if __name__ == "__main__":
    main()
