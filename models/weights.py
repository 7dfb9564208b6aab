"""Weights from any checkpoint, without running what is in it.

    checkpoint = read_checkpoint(Path("mask_rcnn_r50_fpn.pth"))
    checkpoint.dialect                                     # "mmdetection"
    load_into(model, checkpoint.tensors, NAMES, IGNORED)   # says which names or shapes do not fit, and stops

    python -m models.weights show FILE
    python -m models.weights convert FILE OUT.safetensors

torch files, those from before torch 1.6, plain pickles of arrays (detectron2's `.pkl`) and safetensors look the same
afterwards. How they are read: `models/checkpoints/`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from models.checkpoints import safe
from models.checkpoints.errors import CheckpointError
from models.checkpoints.fit import Fitted, load_into, rename
from models.checkpoints.reading import Checkpoint, read_checkpoint, read_classes

__all__ = ["Checkpoint", "CheckpointError", "Fitted", "load_into", "main", "read_checkpoint", "read_classes", "rename"]

SHOWN = 12  # names of a list that `show` prints

EPILOG = """\
examples:
  python -m models.weights show model_final.pkl
  python -m models.weights convert model_final.pkl weights.safetensors

A PyTorch checkpoint (.pth, .pt, .pkl) is a program: torch.load runs it, and whoever wrote the file decides what it
does. These commands read it and run nothing; what the program asked for is listed under "ignored". A file that asks
for what no checkpoint needs, such as os.system, is refused. Convert a checkpoint once, and hand the safetensors file
around.

Reads torch files (of 1.6 and later, and before), pickles of numpy arrays (detectron2's model zoo) and safetensors, and
knows by the names of the weights which code base they come from. The names are kept: python -m export maps them.
"""


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m models.weights",
        description="Look into a checkpoint, or make safetensors of it, without running what is in it.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="show|convert")
    show = commands.add_parser("show", help="say what is in a checkpoint", description="Say what is in a checkpoint.")
    convert = commands.add_parser(
        "convert",
        help="write its weights as safetensors",
        description="Write a checkpoint's weights as safetensors, under the names they have. Class names, where the "
        "checkpoint tells them, go along.",
    )
    for command in (show, convert):
        command.add_argument("file", type=Path, metavar="FILE", help="checkpoint: .pth, .pt, .pkl, .safetensors, ...")
    convert.add_argument("out", type=Path, metavar="OUT.safetensors", help="what to write")
    convert.add_argument("--replace", action="store_true", help="overwrite OUT.safetensors")
    return parser.parse_args(argv)


def main(argv: list[str]) -> int:
    """0 when it is done, 1 when the file was refused or nothing could be written."""
    args = parse(argv)
    try:
        if args.command == "show":
            show(args.file)
        else:
            convert(args.file, args.out, args.replace)
    except CheckpointError as error:
        print(f"not {'shown' if args.command == 'show' else 'converted'}: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # whoever reads has seen enough, as `head` has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def show(path: Path) -> None:
    """
    Raises:
        CheckpointError: not a checkpoint that can be read.
    """
    checkpoint = read_checkpoint(path)
    _print_summary(path, checkpoint)
    print()
    width = max(map(len, checkpoint.tensors))
    for name, tensor in checkpoint.tensors.items():
        print(f"{_printable(name):<{width}}  {str(tensor.dtype).removeprefix('torch.'):<8}  {tuple(tensor.shape)}")


def convert(path: Path, out: Path, replace: bool) -> None:
    """
    Raises:
        CheckpointError: the checkpoint cannot be read, or `out` is there already or cannot be written.
    """
    if out.suffix != ".safetensors":
        raise CheckpointError(f"{out} should end in .safetensors, which is what gets written")
    if out.exists() and not replace:
        raise CheckpointError(f"{out} is there already; give --replace to overwrite it, or another name")
    if not out.parent.is_dir():
        raise CheckpointError(f"there is no folder {out.parent}; make it first")
    began = time.monotonic()
    print(f"[1/2] reading {path} ...", flush=True)
    checkpoint = read_checkpoint(path)
    print(f"[2/2] writing {out} ...", flush=True)
    try:
        safe.write(out, checkpoint.tensors, _metadata(checkpoint), _percentage())
    except OSError as error:
        raise CheckpointError(f"cannot write {out}: {error.strerror}") from None
    print()
    _print_summary(path, checkpoint)
    print(f"{'written':<10} {out}, {out.stat().st_size / 1e6:.1f} MB, in {time.monotonic() - began:.1f} s")


def _metadata(checkpoint: Checkpoint) -> dict[str, str]:
    """What goes along with the weights; `read_checkpoint` finds the classes again."""
    metadata = {"dialect": checkpoint.dialect or "unknown", "container": checkpoint.container}
    if checkpoint.classes is not None:
        metadata["classes"] = json.dumps(checkpoint.classes, ensure_ascii=False)
    return metadata


def _percentage() -> Callable[[int, int], None]:
    """Prints tenths as they come."""
    told = 0

    def progress(done: int, total: int) -> None:
        nonlocal told
        while told < 100 and done * 100 >= (told + 10) * total:
            told += 10
            print(f"  {told} %", flush=True)

    return progress


def _print_summary(path: Path, checkpoint: Checkpoint) -> None:
    rows = [
        ("file", f"{path}, {path.stat().st_size / 1e6:.1f} MB"),
        ("container", checkpoint.container),
        ("dialect", checkpoint.dialect or "unknown: its names are of no code base that the export knows"),
        ("tensors", f"{len(checkpoint.tensors)}, {checkpoint.bytes / 1e6:.1f} MB"),
        ("classes", "not told" if checkpoint.classes is None else _listed(checkpoint.classes)),
        ("remarks", _listed([f"{name} = {value}" for name, value in checkpoint.metadata.items() if name != "classes"])),
        ("ignored", _listed(checkpoint.foreign)),
        ("left out", _listed(checkpoint.left_out)),
    ]
    for title, text in rows:
        if text:
            print(f"{title:<10} {_printable(text)}")


def _printable(text: str) -> str:
    """Text of a file, so that it cannot move the cursor."""
    return text if text.isprintable() else ascii(text)


def _listed(names: Sequence[str]) -> str:
    more = f", ... ({len(names)})" if len(names) > SHOWN else ""
    return ", ".join(name[:80] for name in names[:SHOWN]) + more


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
