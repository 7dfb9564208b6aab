"""What others are told of loading, and when."""

from __future__ import annotations

import asyncio
from pathlib import Path

from server.hosting import Hosting
from server.metrics import Metrics
from server.repository import Repository, find_models
from server.settings import Settings
from server.workers import Workers
from tests.server.fakes import FakeLoader


def test_nobody_can_be_told_ready_before_the_other_processes_are_and_memory_was_given_back(tiny_bundle: Path) -> None:
    told: list[str] = []
    seen: list[tuple[str, bool, bool]] = []

    async def scenario() -> None:
        bundles = tiny_bundle.parent.parent
        settings = Settings.model_validate({"bundles": bundles})
        repository = Repository(find_models(bundles), None)
        (model,) = repository.models
        workers, loader = Workers(1), FakeLoader()
        hosting = Hosting(
            settings, repository, Metrics(), loader, workers=workers, on_settled=lambda: told.append("settled")
        )
        await hosting.start()
        over = False
        while not over:  # every turn of the loop is one in which /readyz could be answered
            over = bool(told)  # look once more after
            seen.append((model.condition.state, bool(told), loader.engine.gave_back))
            await asyncio.sleep(0)
        await hosting.close(1.0)
        workers.close()

    asyncio.run(asyncio.wait_for(scenario(), 30))
    assert {state for state, *_ in seen} >= {"loading", "ready"}
    assert {(prepared, gave_back) for state, prepared, gave_back in seen if state == "ready"} == {(True, True)}
    assert told == ["settled"]
