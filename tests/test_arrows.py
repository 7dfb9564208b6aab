"""Imports between the rooms point one way; these tests read every import and hold the arrows.

models   -> server's values: the manifest, the mask representations, geometry, what an input looks like
export   -> models, and server without its HTTP and scheduling
training -> models, export, and server without its HTTP and scheduling
bench, tests -> anything
server, loadtest -> themselves, and never torch
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True, slots=True)
class Room:
    """Which modules a room may import; a name stands for the module and all below it."""

    ours: tuple[str, ...]  # of this repository, the room itself included
    closed: tuple[str, ...] = ()  # parts of `ours`, and foreign packages, that stay shut


WIRE = ("server.http", "server.scheduling", "server.app", "server.__main__")
EVERYTHING = ("models", "export", "server", "loadtest", "training", "bench", "tests", "docs")
ROOMS = {
    "models": Room(("models", "server.manifest", "server.masks", "server.geometry", "server.preprocess")),
    "export": Room(("export", "models", "server"), closed=WIRE),
    "training": Room(("training", "models", "export", "server"), closed=WIRE),
    "server": Room(("server",), closed=("torch",)),
    "loadtest": Room(("loadtest",), closed=("torch",)),
    "docs": Room(("docs",), closed=("torch",)),
    "bench": Room(EVERYTHING),
    "tests": Room(EVERYTHING),
}


def modules_of(room: str) -> list[str]:
    """Dotted names of the modules in a room, packages by their own name; empty while the room does not exist."""
    paths = sorted((ROOT / room).rglob("*.py"))
    return [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in paths]


def read(module: str) -> tuple[str, str, bool]:
    """A module's text, its name, and whether it is a package: what `against_the_arrows` takes."""
    path = ROOT.joinpath(*module.split("."))
    package = (path / "__init__.py").is_file()  # a folder of data may stand beside a module
    return (path / "__init__.py" if package else path.with_suffix(".py")).read_text(encoding="utf-8"), module, package


def imports_of(source: str, module: str, package: bool = False) -> Iterator[str]:
    """Everything `source` imports, at the top, inside functions and under `if TYPE_CHECKING`, as absolute dotted names.

    `from a import b` gives `a.b`: b may be a module. Calls of `import_module` and `__import__` count when their
    argument is written out.

    Args:
        source: text of the module.
        module: its dotted name, which relative imports start from.
        package: True for an `__init__.py`.
    """
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(module=base, names=names, level=level):
                if level:
                    above = module.split(".") if package else module.split(".")[:-1]
                    base = ".".join([*above[: len(above) - level + 1], *([base] if base else [])])
                yield from (f"{base}.{alias.name}" for alias in names)
            case ast.Call(
                func=ast.Name(id="__import__" | "import_module") | ast.Attribute(attr="import_module"),
                args=[ast.Constant(value=str() as name), *_],
            ):
                yield name


def lies_in(name: str, places: tuple[str, ...]) -> bool:
    return any(name == place or name.startswith(f"{place}.") for place in places)


def against_the_arrows(source: str, module: str, package: bool = False) -> list[str]:
    """What `source` imports though its room may not; empty when all is well."""
    room = ROOMS[module.split(".")[0]]
    return [
        name
        for name in imports_of(source, module, package)
        if (lies_in(name, EVERYTHING) and not lies_in(name, room.ours)) or lies_in(name, room.closed)
    ]


@pytest.mark.parametrize("room", ROOMS)
def test_every_import_goes_along_an_arrow(room: str) -> None:
    wrong = {module: against_the_arrows(*read(module)) for module in modules_of(room)}
    assert not {module: names for module, names in wrong.items() if names}


def test_every_folder_with_python_in_it_is_a_room_with_a_rule() -> None:
    folders = {path.relative_to(ROOT).parts[0] for path in ROOT.glob("[!.]*/**/*.py")}
    assert folders - {"runs", "build"} <= set(ROOMS)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("server.engines.onnx", "import torch"),
        ("server.engines.onnx", "import numpy, torch.nn as nn"),
        ("server.engines.onnx", "from torch import Tensor"),
        ("server.engines.onnx", "def run():\n    from torch.nn import functional"),
        ("server.engines.onnx", "import importlib\nimportlib.import_module('torch')"),
        ("server.engines.onnx", "torch = __import__('torch')"),
        ("server.pipeline", "from models.unet import UNet"),
        ("server.pipeline", "import loadtest"),
        ("loadtest.client", "from server.rle import decode"),
        ("loadtest.client", "import torch"),
        ("models.unet", "import server"),
        ("models.unet", "from server import pipeline"),
        ("models.unet", "from server.http import app"),
        ("models.unet", "from export.parity import compare"),
        ("models.unet", "from ..server import pipeline"),
        ("models.blocks.conv", "from ...training.nuclei import data"),
        ("export.write", "from server.http.app import create_app"),
        ("export.write", "from server import scheduling"),
        ("export.write", "from server.app import create_app"),
        ("export.write", "from training.nuclei import data"),
        ("training.nuclei.train", "import server.scheduling"),
        ("training.nuclei.train", "import bench"),
        ("server.rle", "from tests.fakes import FakeEngine"),
    ],
)
def test_an_import_against_the_arrows_is_seen(module: str, source: str) -> None:
    assert len(against_the_arrows(source, module)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("models.unet", "import torch\nfrom server.manifest import InputSpec\nfrom server.masks.watershed import X"),
        ("models.unet", "from server import geometry, manifest, masks"),
        ("models.unet", "from .blocks.conv import ResidualBlock"),
        ("models.blocks.conv", "from . import normalise\nfrom .. import unet"),
        ("export.write", "from server import manifest, pipeline\nfrom models import unet"),
        ("training.nuclei.evaluate", "from server.masks import AnyMasks\nfrom export import parity\nimport torch"),
        ("server.app", "from . import http, scheduling\nimport torchlight\nimport serverless"),
        ("loadtest.client", "from .report import Report\nimport http.client"),
        ("bench.masks", "from server.http import app\nimport torch, models.unet, loadtest"),
    ],
)
def test_an_import_along_the_arrows_passes(module: str, source: str) -> None:
    assert against_the_arrows(source, module) == []


def test_a_relative_import_starts_from_the_package_it_is_written_in() -> None:
    assert list(imports_of("from .a import b", "server.masks.roi")) == ["server.masks.a.b"]
    assert list(imports_of("from .a import b", "server.masks", package=True)) == ["server.masks.a.b"]
    assert list(imports_of("from .. import a", "server.masks.roi")) == ["server.a"]
    assert list(imports_of("from ..a import b", "server.masks", package=True)) == ["server.a.b"]


IMPORT_ALL = """
import importlib, sys
for module in sys.argv[2:]:
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:  # an engine's runtime that is not installed here
        if error.name is None or error.name.split(".")[0] == module.split(".")[0]:
            raise
print(*sorted(set(sys.argv[1].split(",")) & set(sys.modules)))
"""


def loaded_with(modules: list[str], wanted: tuple[str, ...]) -> str:
    """Those of `wanted` that are in memory after a new interpreter has imported `modules`, one line."""
    command = [sys.executable, "-c", IMPORT_ALL, ",".join(wanted), *modules]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("room", ["server", "loadtest"])
def test_importing_all_of_a_room_brings_no_torch(room: str) -> None:
    modules = [module for module in modules_of(room) if not module.endswith(".__main__")]
    assert loaded_with(modules, ("torch",)) == ""


def test_the_supervisor_stays_small() -> None:
    modules = ["server.__main__", "server.processes.supervisor"]
    frameworks = ("onnxruntime", "fastapi", "starlette", "prometheus_client", "cv2", "PIL")
    assert loaded_with(modules, (*frameworks, "server.manifest", "server.engines.choice", "server.scheduling")) == ""


def test_what_models_may_import_brings_no_web_framework_and_no_engine() -> None:
    values = [module for module in modules_of("server") if lies_in(module, ROOMS["models"].ours)]
    assert loaded_with(values, ("fastapi", "starlette", "uvicorn", "onnxruntime")) == ""
