"""The locks are whole, agree with what they were made from, and name no place to fetch from."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
FILES = [path for path in sorted((ROOT / "requirements").iterdir()) if path.suffix in {".in", ".txt"}]
HASH = re.compile(r"--hash=sha256:[0-9a-f]{64}")


def entries(name: str) -> dict[str, list[str]]:
    """Requirement -> its options, of a file in requirements/ and those it includes, without comments."""
    text = re.sub(r"\\\n", " ", (ROOT / "requirements" / name).read_text(encoding="utf-8"))
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        if line.startswith("-r "):
            found |= entries(line.removeprefix("-r "))
        requirement, *options = re.split(r"\s+(?=--)", re.sub(r"(^|\s)#.*", "", line).strip())
        if requirement and not requirement.startswith("-"):
            found[requirement] = [option.strip() for option in options]
    return found


def same(requirements: list[str]) -> set[str]:
    """In one spelling, so that quotes, blanks and the order of bounds make no difference."""
    return {str(Requirement(requirement)) for requirement in requirements}


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def extra(name: str) -> list[str]:
    """An extra of pyproject.toml, with the extras it includes."""
    wanted = []
    for text in project()["optional-dependencies"][name]:
        requirement = Requirement(text)
        if requirement.name == project()["name"]:
            wanted += [inner for included in requirement.extras for inner in extra(included)]
        else:
            wanted.append(text)
    return wanted


def pins(name: str) -> dict[str, set[str]]:
    """Package -> the versions a lock holds it to, one a marker."""
    found: dict[str, set[str]] = {}
    for requirement in map(Requirement, entries(name)):
        found.setdefault(canonicalize_name(requirement.name), set()).add(str(requirement.specifier))
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_requirements_file_names_no_place_to_fetch_from(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert "://" not in text
    assert " @ " not in text
    options = re.findall(r"(?m)(?:^|\s)(-[-\w]+)", HASH.sub("", text))
    assert set(options) <= {"-c", "-r"}  # -r: in the comments that say where a package comes from


@pytest.mark.parametrize("name", ["serve.txt", "gpu.txt"])
def test_every_serving_requirement_is_one_version_with_its_hashes(name: str) -> None:
    for requirement, options in entries(name).items():
        assert re.fullmatch(r"==[\w.]+", str(Requirement(requirement).specifier)), requirement
        assert options, requirement
        assert all(HASH.fullmatch(option) for option in options), requirement


@pytest.mark.parametrize("name", ["dev.txt", "export.txt"])
def test_every_development_requirement_is_one_version(name: str) -> None:
    for requirement in entries(name):
        assert re.fullmatch(r"==[\w.]+", str(Requirement(requirement).specifier)), requirement


def test_the_serving_dependencies_stand_alike_in_both_places() -> None:
    assert same(project()["dependencies"]) == same(list(entries("serve.in")))


def test_a_gpu_changes_the_runtime_and_nothing_else() -> None:
    gpu = same(extra("gpu"))
    assert same(list(entries("gpu.in"))) - same(list(entries("common.in"))) == gpu
    added = pins("gpu.txt").keys() - pins("serve.txt").keys()
    assert added == {"onnxruntime-gpu"} | {name for name in added if name.startswith("nvidia-")}
    assert pins("serve.txt").keys() - pins("gpu.txt").keys() == {"onnxruntime"}


def test_the_export_dependencies_stand_alike_in_both_places() -> None:
    assert same(extra("export")) == same(list(entries("export.in")))


def test_the_development_dependencies_stand_alike_in_both_places() -> None:
    assert same(extra("dev")) == same(list(entries("dev.in")))


@pytest.mark.parametrize("name", ["serve", "gpu", "export", "dev"])
def test_a_lock_answers_every_requirement_it_was_made_from(name: str) -> None:
    locked = pins(f"{name}.txt")
    for requirement in map(Requirement, entries(f"{name}.in")):
        versions = {pin.removeprefix("==") for pin in locked[canonicalize_name(requirement.name)]}
        assert all(requirement.specifier.contains(version) for version in versions), requirement


@pytest.mark.parametrize("name", ["gpu", "export", "dev"])
def test_what_two_locks_hold_is_the_same_version(name: str) -> None:
    serve, other = pins("serve.txt"), pins(f"{name}.txt")
    shared = serve.keys() & other.keys()
    assert shared
    assert {package: serve[package] for package in shared} == {package: other[package] for package in shared}


def test_torch_is_held_by_version_in_dev_and_absent_from_serving() -> None:
    assert pins("dev.txt")["torch"] == {"==2.13.0"}
    assert "torch" not in pins("serve.txt")


def test_no_lock_brings_cuda_packages() -> None:
    names = pins("serve.txt").keys() | pins("dev.txt").keys()
    assert not [name for name in names if name.startswith(("nvidia-", "cuda-")) or name in {"triton", "tensorrt"}]
