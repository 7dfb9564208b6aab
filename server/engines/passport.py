"""Does a `model.plan` fit this machine? Asked before TensorRT sees it, and answered in one sentence when it does not.

A plan is a program for one GPU, made by one version of one package. TensorRT itself says no with a null pointer and a
line on stderr, or, where it takes a plan that it should not, with a wrong answer; so the manifest has a passport, and
it is read first. A plan can hold code for the host as well: only a file whose sha256 the manifest has is opened.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from server.bundle_files import PLAN_FILE, TWIN_FILE
from server.manifest import Bundle, Manifest, Passport
from server.preprocess import AnyInput, FixedInput, ShortestEdgeInput

AMPERE = (8, 0)
AGAIN = "build it again with 'python -m export plan' on this machine"


def platform_here() -> str:
    """As in a passport: `linux-x86_64`."""
    return f"{platform.system().lower()}-{platform.machine()}"


@dataclass(frozen=True, slots=True)
class Machine:
    """What a passport is held against.

    Args:
        compute_capability: of the GPU, as in `9.0`.
        gpu: its name.
        bindings: a package's Python module, or None where it is not installed.
    """

    platform: str
    compute_capability: str
    gpu: str
    bindings: Callable[[str], Any]


def misfit(bundle: Bundle, machine: Machine) -> str | None:
    """Why the plan of a bundle cannot be used on this machine; None when it can.

    The sha256 of the plan itself is left to `read_plan`, so that it is told of the bytes that are opened.
    """
    passport = bundle.manifest.plan
    if passport is None:
        return "the bundle has no model.plan; 'python -m export plan' builds one"
    checks = (_version, _platform, _compute_capability)
    return next(filter(None, (check(passport, machine) for check in checks)), None) or _files(bundle.manifest, passport)


def read_plan(bundle: Bundle) -> bytes | str:
    """The plan's bytes, once they are those that the manifest and the passport have; else why not."""
    path = bundle.folder / PLAN_FILE
    passport = bundle.manifest.plan
    if passport is None or path.is_symlink() or not path.is_file():
        return "model.plan is missing; copy the bundle again, or build the plan again"
    content = path.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != passport.plan_sha256:
        return f"model.plan has sha256 {found[:12]}..., its passport says {passport.plan_sha256[:12]}...; {AGAIN}"
    return content


def largest_batch(passport: Passport) -> int:
    """Images that some profile takes at once."""
    return max(profile.largest["images"][0] for profile in passport.profiles)


def _version(passport: Passport, machine: Machine) -> str | None:
    trt = machine.bindings(passport.package)
    if trt is None:
        return (
            f"model.plan is for {passport.package} {passport.package_version}, which is not installed here; "
            "see docs/tensorrt.md"
        )
    here, built = _numbers(trt.__version__), _numbers(passport.package_version)
    # a release of TensorRT-RTX runs its own engines alone (NVIDIA, TensorRT-RTX, Engine Compatibility)
    lasting = passport.version_compatible and passport.package == "tensorrt"
    fits = here == built or (lasting and here[:1] == built[:1] and here >= built)
    if fits:
        return None
    wanted = "that or a later one of the same major" if lasting else "exactly that one"
    return (
        f"model.plan was built by {passport.package} {passport.package_version} and needs {wanted}, "
        f"here is {trt.__version__}; {AGAIN}"
    )


def _platform(passport: Passport, machine: Machine) -> str | None:
    if passport.platform == machine.platform:
        return None
    return f"model.plan was built for {passport.platform}, this is {machine.platform}; {AGAIN}"


def _compute_capability(passport: Passport, machine: Machine) -> str | None:
    here = machine.compute_capability
    if passport.hardware_compatibility == "ampere_plus":
        fits, wanted = _numbers(here) >= AMPERE, "8.0 and later"
    else:
        fits, wanted = here in passport.compute_capabilities, ", ".join(passport.compute_capabilities)
    if fits:
        return None
    return f"model.plan was built for compute capability {wanted}, the {machine.gpu} here has {here}; {AGAIN}"


def _files(manifest: Manifest, passport: Passport) -> str | None:
    if manifest.files.get(PLAN_FILE) != passport.plan_sha256:
        return f"the manifest's list of files has not the model.plan of the passport; {AGAIN}"
    if manifest.files.get(TWIN_FILE) != passport.twin_sha256:
        return f"model.plan was built from another model.trt.onnx than the bundle's; {AGAIN}"
    return _sizes(manifest, passport)


def _sizes(manifest: Manifest, passport: Passport) -> str | None:
    """Whether one picture of any size that the server will ask for lies in some profile: the corners of that range."""
    for height, width in _corners(manifest.input):
        if not any(_holds(profile.smallest["images"], profile.largest["images"], height, width)
                   for profile in passport.profiles):  # fmt: skip
            return f"no profile of model.plan takes one image of {height} x {width}, which this model asks for; {AGAIN}"
    return None


def _corners(spec: AnyInput) -> list[tuple[int, int]]:
    if isinstance(spec, FixedInput):
        return [spec.size]
    least, (height, width) = spec.multiple, spec.max_size
    corners = [(least, least), (least, width), (height, least)]
    if isinstance(spec, ShortestEdgeInput):  # never is the shorter side as long as the longer one may be
        short = min(-(-spec.short_side // least) * least, height)
        return [*corners, (short, width), (height, short)]
    return [*corners, (height, width)]


def _holds(smallest: list[int], largest: list[int], height: int, width: int) -> bool:
    return all(low <= side <= high for low, side, high in zip(smallest, (1, height, width, 3), largest, strict=True))


def _numbers(version: str) -> tuple[int, ...]:
    """`11.4.0.106` -> (11, 4, 0, 106)."""
    return tuple(int(part) for part in version.split("+")[0].split(".") if part.isdecimal())
