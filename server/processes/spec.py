"""What the supervisor tells a child: one object of JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Spec:
    """What a child is told."""

    name: str  # one of `names`
    names: list[str]  # of all processes, in the order of the board
    number: int  # of a front, from 0
    parent: int  # process id of the supervisor
    settings: dict[str, Any]
    load: str  # the function that opens a bundle: `server.loading:load`
    models: list[tuple[str, str, str]]  # name, folder of the version, sha256 of its manifest
    graph_files: list[int]  # of the models: descriptors of what `engines.ready_graph` shares
    fronts: int
    quotas: int
    generation: int  # how many engine processes there have been, this one included
    control: int  # descriptors: the socket of the supervisor,
    listen: int | None  # that of the port,
    inbox: int | None  # of connections that other fronts hand on,
    doors: list[int]  # to the inboxes of all fronts,
    board: int  # the board,
    ledgers: list[int]  # and the metrics of the engine process and of all fronts

    def dumps(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @classmethod
    def loads(cls, text: bytes) -> Spec:
        fields = json.loads(text)
        return cls(**fields | {"models": [(name, folder, digest) for name, folder, digest in fields["models"]]})


def process_names(fronts: int, shared: bool) -> list[str]:
    """Of all processes, in the order of the board's rows; without a shared engine its row stays empty."""
    kind = "front" if shared else "server"
    return ["supervisor", "engine", *(f"{kind}-{number + 1}" for number in range(fronts))]
