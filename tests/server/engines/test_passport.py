"""A plan that does not fit is refused with the sentence that says why."""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError

from server.engines.passport import Machine, largest_batch, misfit, platform_here, read_plan
from server.manifest import Bundle, Manifest, Passport, Profile, read_bundle
from server.preprocess import FixedInput, InputSpec, ShortestEdgeInput

PLAN, TWIN = b"the plan", "2" * 64
FIXED = FixedInput(size=(96, 128), resize="stretch")
FREE = InputSpec(short_side=64, max_scale=2, multiple=16, max_size=(128, 256))
EDGE = ShortestEdgeInput(short_side=800, long_side=1333, multiple=32)
SHA256 = hashlib.sha256(PLAN).hexdigest()


def profile(low: tuple[int, int], high: tuple[int, int], batch: int = 8) -> Profile:
    shapes = {
        name: {"images": [count, *size, 3]} for name, count, size in (("smallest", 1, low), ("largest", batch, high))
    }
    return Profile(best=shapes["largest"], **shapes)


def passport(**changes: Any) -> Passport:
    known = {
        "package": "tensorrt",
        "package_version": "11.4.0.106",
        "platform": "linux-x86_64",
        "compute_capabilities": ["8.6", "9.0"],
        "precision": "fp16",
        "layers": {"fp16": 10},
        "profiles": [profile((16, 16), (1024, 1024))],
        "twin_sha256": TWIN,
        "plan_sha256": SHA256,
        "build": {},
    }
    return Passport.model_validate(known | changes)


@pytest.fixture(scope="module")
def manifest(root: Path) -> Manifest:
    whole = read_bundle(root / "bundles/nuclei/1").manifest
    spec = InputSpec(short_side=512, max_scale=2, multiple=16, max_size=(1024, 1024))
    files = whole.files | {"model.plan": SHA256, "model.trt.onnx": TWIN}
    return whole.model_copy(update={"input": spec, "files": files, "plan": passport()})


def machine(version: str | None = "11.4.0.106", capability: str = "9.0", platform: str = "linux-x86_64") -> Machine:
    trt = None if version is None else SimpleNamespace(__version__=version)
    return Machine(platform, capability, "NVIDIA H200", lambda package: trt)


def ask(manifest: Manifest, here: Machine | None = None, **changes: Any) -> str | None:
    return misfit(Bundle(Path(), manifest.model_copy(update={"plan": passport(**changes)})), here or machine())


def test_a_plan_that_fits_is_not_refused(manifest: Manifest) -> None:
    assert ask(manifest) is None
    assert largest_batch(passport()) == 8


def test_no_plan_at_all_says_how_to_make_one(manifest: Manifest) -> None:
    none = Bundle(Path(), manifest.model_copy(update={"plan": None}))
    assert misfit(none, machine()) == "the bundle has no model.plan; 'python -m export plan' builds one"
    assert read_plan(none) == "model.plan is missing; copy the bundle again, or build the plan again"


@pytest.mark.parametrize(
    ("version", "built", "compatible", "fits"),
    [
        ("11.4.0.106", "11.4.0.106", False, True),
        ("11.4.0.107", "11.4.0.106", False, False),
        ("11.5.0.1", "11.4.0.106", False, False),
        ("11.5.0.1", "11.4.0.106", True, True),
        ("11.3.9.9", "11.4.0.106", True, False),  # never newer on older
        ("12.0.0.1", "11.4.0.106", True, False),  # another major
        ("10.16.1.11", "11.4.0.106", True, False),
        (None, "11.4.0.106", True, False),
    ],
)
def test_the_version_is_the_one_that_built_it_or_a_later_one_where_that_is_allowed(
    manifest: Manifest, version: str | None, built: str, compatible: bool, fits: bool
) -> None:
    said = ask(manifest, machine(version), package_version=built, version_compatible=compatible)
    assert (said is None) == fits
    if said is not None:
        assert "tensorrt 11.4.0.106" in said
        assert (version or "not installed here") in said


def test_another_release_of_tensorrt_rtx_is_refused_whatever_the_plan_says(manifest: Manifest) -> None:
    told = {"package": "tensorrt-rtx", "package_version": "1.7.1.116", "version_compatible": True}
    assert ask(manifest, machine("1.7.1.116"), **told) is None
    assert "needs exactly that one, here is 1.8.0.1" in str(ask(manifest, machine("1.8.0.1"), **told))


def test_a_passport_whose_profiles_take_no_pictures_is_malformed() -> None:
    for images in ({}, {"images": [1, 16, 16]}, {"pixels": [1, 16, 16, 3]}):
        with pytest.raises(ValidationError, match="every profile needs the smallest and the largest 'images'"):
            passport(profiles=[{"smallest": images, "best": {}, "largest": images}])


@pytest.mark.parametrize(
    ("here", "compatibility", "fits"),
    [
        ("9.0", "none", True),
        ("8.9", "none", False),
        ("8.6", "same_compute_capability", True),
        ("8.9", "same_compute_capability", False),
        ("8.9", "ampere_plus", True),
        ("12.0", "ampere_plus", True),
        ("7.5", "ampere_plus", False),
    ],
)
def test_the_compute_capability_is_among_those_it_was_built_for(
    manifest: Manifest, here: str, compatibility: str, fits: bool
) -> None:
    said = ask(manifest, machine(capability=here), hardware_compatibility=compatibility)
    assert (said is None) == fits
    if said is not None:
        wanted = "8.0 and later" if compatibility == "ampere_plus" else "8.6, 9.0"
        assert f"compute capability {wanted}, the NVIDIA H200 here has {here}; build it again" in said


def test_another_platform_and_files_that_do_not_belong_together_are_refused(manifest: Manifest) -> None:
    assert ask(manifest, machine(platform="linux-aarch64")) == (
        "model.plan was built for linux-x86_64, this is linux-aarch64; "
        "build it again with 'python -m export plan' on this machine"
    )
    assert "has not the model.plan of the passport" in str(ask(manifest, plan_sha256="3" * 64))
    assert "built from another model.trt.onnx" in str(ask(manifest, twin_sha256="4" * 64))
    assert platform_here().count("-") == 1


@pytest.mark.parametrize(
    ("spec", "profiles", "refused"),
    [
        (FIXED, [profile((96, 128), (96, 128))], None),
        (FIXED, [profile((96, 96), (96, 96))], "96 x 128"),
        (FREE, [profile((16, 16), (128, 256))], None),
        (FREE, [profile((32, 32), (128, 256))], "16 x 16"),
        (
            EDGE,
            [profile((32, 32), (800, 1344)), profile((32, 32), (1344, 800))],
            None,
        ),
        (EDGE, [profile((32, 32), (800, 1344))], "1344 x 32"),
        (
            EDGE,
            [profile((32, 32), (800, 1312)), profile((32, 32), (1344, 800))],
            "32 x 1344",
        ),
    ],
)
def test_every_size_that_pictures_may_come_to_lies_in_some_profile(
    manifest: Manifest, spec: Any, profiles: list[Profile], refused: str | None
) -> None:
    said = ask(manifest.model_copy(update={"input": spec}), profiles=profiles)
    if refused is None:
        assert said is None
    else:
        assert f"no profile of model.plan takes one image of {refused}" in str(said)


def test_only_the_bytes_that_the_passport_names_are_handed_out(manifest: Manifest, tmp_path: Path) -> None:
    bundle = Bundle(tmp_path, manifest)
    assert "model.plan is missing" in str(read_plan(bundle))
    (tmp_path / "model.plan").write_bytes(PLAN)
    assert read_plan(bundle) == PLAN
    (tmp_path / "model.plan").write_bytes(PLAN + b"\0")
    assert "its passport says" in str(read_plan(bundle))
    (tmp_path / "model.plan").rename(tmp_path / "elsewhere")
    (tmp_path / "model.plan").symlink_to(tmp_path / "elsewhere")
    assert "model.plan is missing" in str(read_plan(bundle))
