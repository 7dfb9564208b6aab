"""What a builder is asked for, apart from the graph and its shapes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from export.errors import ExportError
from export.tensorrt.package import Package

Hardware = Literal["none", "ampere_plus", "same_compute_capability"]


class Options(BaseModel):
    """As on the command line of `python -m export plan`, whose help says what each is for."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    compute_capabilities: Annotated[list[str], Field(min_length=1)]
    hardware: Hardware = "none"
    version_compatible: bool = False
    level: Annotated[int, Field(ge=0, le=5)] = 3
    workspace_mb: Annotated[int, Field(ge=1)] | None = None
    tf32: bool = False
    timing_cache: Path | None = None

    def check(self, package: Package) -> None:
        """
        Raises:
            ExportError: this builder has no such thing, and would say nothing or little about it.
        """
        if self.timing_cache is not None and not package.has_timing_cache:
            raise ExportError(
                f"--timing-cache {self.timing_cache}: {package.name} measures no kernels while it builds, "
                "so there is nothing to keep; leave it out"
            )
        if self.version_compatible and not package.has_version_compatibility:
            raise ExportError(
                f"--version-compatible: a release of {package.name} runs its own engines alone; leave it out, and "
                "build again after an update"
            )
        if self.hardware != "none" and not package.has_hardware_levels:
            raise ExportError(
                f"--hardware {self.hardware}: {package.name} has no such levels; name the GPUs with "
                "--compute-capability, as in 8.6,8.9,12.0"
            )
