"""One fold's annotations as a COCO file of their own: what `python -m export ... --check` takes.

`python -m training.nuclei.annotations --data ../shared/data/nuclei --fold 0 fold0.json` keeps the fold's pictures and
all that is annotated in them; the pictures themselves stay where they are (`--images ../shared/data/nuclei/images`).
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from training.nuclei.data import TEST_FOLD
from training.nuclei.evaluate import fold_index


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m training.nuclei.annotations", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with instances.json and images/")
    parser.add_argument("--fold", type=int, default=TEST_FOLD, help="0 is the test; 1 to 4 were trained on")
    parser.add_argument("out", type=Path, help="the file to write")
    args = parser.parse_args(argv)
    if not (args.data / "instances.json").is_file():
        print(f"{args.data} holds no instances.json; the pictures are BBBC038, see docs/models/nuclei.md")
        return 2
    index = fold_index(args.data, args.fold)
    if not index["images"]:
        print(f"{args.data}/instances.json has no picture of fold {args.fold}; folds are 0 to 4")
        return 2
    args.out.write_text(json.dumps(index))
    print(f"{args.out}: {len(index['images'])} pictures, {len(index['annotations'])} nuclei")
    return 0


if __name__ == "__main__":
    sys.exit(main())
