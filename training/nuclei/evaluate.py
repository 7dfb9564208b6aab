"""The bundled model's figures on fold 0, measured on the answers of a running server.

`python -m training.nuclei.evaluate --data ../shared/data/nuclei` starts the server on a free port of 127.0.0.1, posts
every picture of the fold twice (once with score_threshold=0 for AP, once as a caller would, for the Data Science Bowl
score), decodes the run lengths and prints the scores by kind of picture, with the time per request.
"""

from __future__ import annotations

import argparse
import http.client
import json
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from training.nuclei.data import TEST_FOLD
from training.nuclei.score import Score, score
from training.nuclei.server_process import serve

GOALS = Score(ap=0.54, ap50=0.78, ap75=0.0, dsb=0.53)


def fold_index(folder: Path, fold: int) -> dict:
    """The COCO index of one fold."""
    index = json.loads((folder / "instances.json").read_text())
    images = [image for image in index["images"] if image["fold"] == fold]
    chosen = {image["id"] for image in images}
    annotations = [a for a in index["annotations"] if a["image_id"] in chosen]
    return {"info": {}, "images": images, "annotations": annotations, "categories": index["categories"]}


def restricted(index: dict, image_type: str) -> dict:
    """The index with only one kind of picture."""
    images = [image for image in index["images"] if image["image_type"] == image_type]
    chosen = {image["id"] for image in images}
    return index | {"images": images, "annotations": [a for a in index["annotations"] if a["image_id"] in chosen]}


def post(port: int, payload: bytes, query: str) -> tuple[list[dict], float]:
    """One picture's instances, and the seconds the answer took."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    began = time.perf_counter()
    connection.request("POST", f"/v1/segment{query}", payload, {"Content-Type": "application/octet-stream"})
    response = connection.getresponse()
    body = json.loads(response.read())
    took = time.perf_counter() - began
    connection.close()
    if response.status != 200:
        raise SystemExit(f"the server answered {response.status}: {body}")
    if body["truncated"]:
        raise SystemExit("an answer was truncated; the figures would be wrong")
    return body["instances"], took


def as_results(instances: list[dict], image_id: int) -> list[dict]:
    return [instance | {"image_id": image_id} for instance in instances]


def evaluate(folder: Path, port: int, fold: int) -> dict[str, dict]:
    """Scores of all pictures and of each kind, as the table prints them."""
    index = fold_index(folder, fold)
    every: list[dict] = []
    default: list[dict] = []
    seconds: dict[int, float] = {}
    for number, image in enumerate(index["images"], start=1):
        payload = (folder / "images" / image["file_name"]).read_bytes()
        found, _ = post(port, payload, "?score_threshold=0")
        every += as_results(found, image["id"])
        found, seconds[image["id"]] = post(port, payload, "")
        default += as_results(found, image["id"])
        print(f"\r{number}/{len(index['images'])} pictures", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    rows = {}
    kinds = sorted({image["image_type"] for image in index["images"]})
    for name, part in [("all", index), *((kind, restricted(index, kind)) for kind in kinds)]:
        mine = {image["id"] for image in part["images"]}
        figures = score(
            part,
            [result for result in every if result["image_id"] in mine],
            [result for result in default if result["image_id"] in mine],
        )
        rows[name] = {
            "pictures": len(part["images"]),
            "nuclei": len(part["annotations"]),
            "ap": round(figures.ap, 4),
            "ap50": round(figures.ap50, 4),
            "ap75": round(figures.ap75, 4),
            "dsb": round(figures.dsb, 4),
            "median_ms": round(1000 * statistics.median(seconds[i] for i in mine), 1),
        }
    return rows


@contextmanager
def at_port(port: int | None, bundles: Path) -> Iterator[int]:
    """A running server's port, or one that is started for the block."""
    if port is not None:
        yield port
    else:
        with serve(bundles) as started:
            yield started


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m training.nuclei.evaluate", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with instances.json and images/")
    parser.add_argument("--bundles", type=Path, default=Path("bundles"), help="what to serve (default bundles)")
    parser.add_argument("--port", type=int, help="a server that runs already on 127.0.0.1, in place of a new one")
    parser.add_argument("--fold", type=int, default=TEST_FOLD, help="0 is the test; 1 to 4 were trained on")
    parser.add_argument("--json", type=Path, help="write the figures there too")
    args = parser.parse_args()
    if not (args.data / "instances.json").is_file():
        print(
            f"{args.data} holds no instances.json; the pictures are BBBC038, see docs/models/nuclei.md", file=sys.stderr
        )
        return 2
    with at_port(args.port, args.bundles) as port:
        rows = evaluate(args.data, port, args.fold)
    print(f"fold {args.fold}, measured on the server's answers, up to 1000 detections a picture")
    print(f"{'kind':<18} {'pictures':>8} {'nuclei':>7} {'AP':>7} {'AP50':>7} {'AP75':>7} {'DSB':>7} {'ms':>7}")
    for name, row in rows.items():
        print(
            f"{name:<18} {row['pictures']:>8} {row['nuclei']:>7} {row['ap']:>7.3f} {row['ap50']:>7.3f} "
            f"{row['ap75']:>7.3f} {row['dsb']:>7.3f} {row['median_ms']:>7.1f}"
        )
    print(f"{'goal':<18} {'':>8} {'':>7} {GOALS.ap:>7.3f} {GOALS.ap50:>7.3f} {'':>7} {GOALS.dsb:>7.3f}")
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
