"""What the manifest says of an engine: where it was built, where it runs, and what it computes in.

`verified` says 'not run': that an engine was built proves its types and shapes, not its answers. The server asks it for
the golden sample every time it is loaded.
"""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Iterable

from export.tensorrt import reading
from export.tensorrt.building import Built
from export.tensorrt.options import Options
from export.tensorrt.package import Package
from server.engines.device import Properties
from server.engines.passport import platform_here
from server.manifest import Manifest, Passport, Profile


def passport_for(
    package: Package,
    manifest: Manifest,
    built: Built,
    *,
    profiles: list[Profile],
    options: Options,
    here: Properties | None,
    peak_memory_mb: float,
    twin_sha256: str,
    plan_sha256: str,
) -> Passport:
    """
    Args:
        here: the GPU that it was built on.
        peak_memory_mb: of the process that built it.

    Raises:
        ExportError: the precision that the manifest states is not in the engine.
    """
    found = reading.products_found(built.layers, built.asked)
    share = reading.check_precision(manifest.precision, built.asked, found)
    return Passport.model_validate(
        {
            "package": package.name,
            "package_version": package.version,
            "platform": platform_here(),
            "compute_capabilities": options.compute_capabilities,
            "hardware_compatibility": options.hardware,
            "version_compatible": options.version_compatible,
            "gpu": here.name if here else None,
            "driver": here.driver if here else None,
            "precision": manifest.precision,
            "layers": reading.by_type(built.layers),
            "layers_read_from": built.layers_read_from,
            "products_asked": _counted(built.asked.values()),
            "products": _counted(found.values()),
            "share": round(share, 4),
            "profiles": profiles,
            "twin_sha256": twin_sha256,
            "plan_sha256": plan_sha256,
            "build": {
                "level": options.level,
                "workspace_mb": options.workspace_mb,
                "tf32": options.tf32,
                "timing_cache_bytes": built.timing_cache_bytes,
                "seconds": round(built.seconds, 1),
                "peak_memory_mb": round(peak_memory_mb),
                "plan_bytes": built.plan_bytes,
                "device_memory_bytes": built.device_memory_bytes,
                "built": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            },
        }
    )


def in_words(passport: Passport) -> list[str]:
    """The passport for a reader at a terminal, one fact a line."""
    products = sum(passport.products.values())
    lines = [
        f"built with    {passport.package} {passport.package_version} on {passport.platform}, "
        + (f"{passport.gpu}, driver {passport.driver}" if passport.gpu else "without a GPU"),
        f"runs on       {_where(passport)}",
        f"precision     {passport.precision}: {passport.share or 0:.0%} of {products} convolutions and matrix "
        f"products ({_listed(passport.products)}; asked for {_listed(passport.products_asked)})",
        f"layers        {_listed(passport.layers)}, read from {_source(passport)}",
    ]
    for profile in passport.profiles:
        small, best, large = (
            "x".join(map(str, shapes["images"][:3])) for shapes in (profile.smallest, profile.best, profile.largest)
        )
        lines.append(f"takes         {small} to {large}, tuned for {best}")
    memory = passport.build.get("device_memory_bytes")
    if memory:
        lines.append(f"needs         {memory / 1e9:.1f} GB of the GPU beside its weights, for its largest shape")
    lines.append(f"verified      {passport.verified}")
    return lines


def _where(passport: Passport) -> str:
    targets = ", ".join(passport.compute_capabilities)
    where = {
        "none": f"compute capability {targets}",
        "ampere_plus": "compute capability 8.0 and later",
        "same_compute_capability": f"every GPU of compute capability {targets}",
    }[passport.hardware_compatibility]
    major = passport.package_version.split(".")[0]
    versions = f"and later {major}.x" if passport.version_compatible else "alone"
    return f"{where}; {passport.package} {passport.package_version} {versions}"


def _source(passport: Passport) -> str:
    return "the loaded engine" if passport.layers_read_from == "engine" else "the builder's list"


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items())


def _counted(types: Iterable[str]) -> dict[str, int]:
    counts = Counter(types)
    return {name: counts[name] for name in reading.NARROWEST if counts[name]}
