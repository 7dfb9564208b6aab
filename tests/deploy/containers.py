"""Containers without an engine's service: buildah builds and podman runs, in a storage folder of their own.

What podman needs on a machine without systemd and with limits that may not be raised is said where it is set.
"""

from __future__ import annotations

import json
import os
import resource
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tests.conftest import ROOT
from tests.tools import tool

NEEDED = ("buildah", "podman", "crun", "mmdebstrap", "unshare", "nsenter")


@dataclass(frozen=True, slots=True)
class Containers:
    """Images and containers under one folder; nothing of the machine's own containers is seen or touched."""

    folder: Path
    namespace: int  # id of the process whose mounts are used

    @property
    def storage(self) -> list[str]:
        folder = self.folder
        return ["--root", f"{folder}/storage", "--runroot", f"{folder}/run", "--storage-driver", "overlay"]

    @property
    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "CONTAINERS_CONF": str(self.folder / "containers.conf"),
            "BUILDAH_ISOLATION": "chroot",
            "CNI_PATH": str(self.folder),  # keeps buildah from looking at the machine's networks
        }

    @property
    def _inside(self) -> list[str]:
        """Enters the namespace; the working directory is the repository."""
        return ["nsenter", "--target", str(self.namespace), "--mount", f"--wd={ROOT}"]

    def stand_in(self, tag: str, prefix: Path) -> None:
        """Make the base image `tag` from Debian's packages and the CPython of `prefix`."""
        script = ROOT / "tests/deploy/stand_in.sh"
        self._run(["bash", str(script), " ".join(self.storage), tag, str(prefix)], 300)

    def build(self, context: Path, tag: str, *options: str) -> None:
        fixed = ["--network", "host", "--pull-never", "--format", "docker", "--layers", "--tag", tag]
        self._run(["buildah", *self.storage, "build", *fixed, *options, str(context)], 600)

    def size_mb(self, image: str) -> float:
        """Megabytes (10^6 bytes) of an image, its base included."""
        return int(self.podman("image", "inspect", "--format", "{{.Size}}", image)) / 1e6

    def podman(self, *arguments: str, patience_s: float = 60.0) -> str:
        """What podman prints.

        Raises:
            AssertionError: it failed; with what it said.
        """
        return self._run([*self._inside, "podman", *self.storage, *arguments], patience_s)

    def compose(self, file: Path, environment: Mapping[str, str], *arguments: str) -> str:
        """What podman-compose prints; it finds a podman that knows this storage.

        Raises:
            AssertionError: it failed; with what it said.
        """
        podman = self.folder / "podman"
        podman.write_text(f'#!/bin/sh\nexec {shutil.which("podman")} {shlex.join(self.storage)} "$@"\n')
        podman.chmod(0o755)
        program = Path(sys.executable).with_name("podman-compose")
        command = [str(program), "--podman-path", str(podman), "--file", str(file), *arguments]
        return self._run([*self._inside, *command], 120, environment)

    def inspect(self, container: str, path: str) -> Any:
        return json.loads(self.podman("inspect", "--format", f"{{{{json {path}}}}}", container))

    def _run(self, command: list[str], patience_s: float, more: Mapping[str, str] = MappingProxyType({})) -> str:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=patience_s, env={**self.environment, **more}, check=False
        )
        said = f"{shlex.join(command)}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
        assert done.returncode == 0, said
        return done.stdout.strip()


@contextmanager
def containers(folder: Path) -> Iterator[Containers]:
    """Skips, or fails in CI, where a tool is missing or the caller is not root."""
    for name in NEEDED:
        tool(name)
    folder.mkdir(parents=True, exist_ok=True)
    hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    (folder / "containers.conf").write_text(
        f'[containers]\ndefault_ulimits = ["nofile=1024:{hard_limit}", "nproc=1024:1024"]\n'  # may not be raised here
        '[engine]\nruntime = "crun"\ncgroup_manager = "cgroupfs"\nevents_logger = "file"\n'  # there is no systemd
        '[network]\nnetwork_backend = "netavark"\n'
    )
    # crun refuses a v2 mount beside v1 controllers, so that mount is taken away in a namespace of our own
    holder = subprocess.Popen(
        ["unshare", "--mount", "sh", "-c", "umount /sys/fs/cgroup/unified 2>/dev/null; echo; exec sleep 3600"],
        stdout=subprocess.PIPE,
    )
    assert holder.stdout is not None
    with holder:
        holder.stdout.readline()
        here = Containers(folder, holder.pid)
        try:
            yield here
        finally:
            here.podman("rm", "--all", "--force", "--time", "2")
            holder.terminate()
            subprocess.run(["umount", str(folder / "storage/overlay")], check=False, capture_output=True)
            shutil.rmtree(folder, ignore_errors=True)  # gigabytes


def wait_for(what: str, check: Callable[[], bool], patience_s: float = 60.0) -> None:
    """Ask `check()` until it is true.

    Raises:
        AssertionError: it was not, in time.
    """
    until = time.monotonic() + patience_s
    while not check():
        assert time.monotonic() < until, f"{what}: not within {patience_s:g} s"
        time.sleep(0.2)
