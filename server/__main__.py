"""`python -m server`: serve the bundles of a folder."""

from __future__ import annotations

import logging
import sys

from pydantic import ValidationError
from pydantic_settings import CliApp

from server.cores import choose_workers, has_gpu, memory_limit, usable_cores
from server.errors import StartupError
from server.logs import logging_to_stderr
from server.settings import Settings
from server.watchdog import leave

log = logging.getLogger("maskserve")


def main() -> int:
    """0 after a clean stop, 2 when it cannot start, 1 when it ended by a bug, a hanging engine or a failed device."""
    try:
        settings = CliApp.run(Settings)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        flag = "--" + "-".join(str(part) for part in first["loc"]).replace("_", "-")
        print(f"{flag}: {first['msg']} (got {first['input']!r}); see --help", file=sys.stderr)
        return 2
    on_gpu = settings.engine in ("cuda", "tensorrt") or (settings.engine == "auto" and has_gpu())
    shared = settings.engines == "shared" or (settings.engines == "auto" and on_gpu)
    workers = choose_workers(settings.workers, settings.threads or usable_cores(), shared, memory_limit())
    try:
        if settings.engine in ("cuda", "tensorrt"):
            from server.engines.choice import check_start  # here, as the supervisor is to stay small

            check_start(settings.engine)
        if workers > 1 and sys.platform != "win32":
            from server.processes.supervisor import supervise

            return supervise(settings, workers, shared)
        with logging_to_stderr(settings.log_style, settings.log_level):
            return serve(settings)
    except StartupError as error:
        print(f"cannot start: {error}", file=sys.stderr)
        return 2


def serve(settings: Settings) -> int:
    """All in this process.

    Raises:
        StartupError: it cannot start.
    """
    from server.giving_way import give_way
    from server.http.app import create_app
    from server.http.serving import run_server

    try:
        app = create_app(settings, on_settled=give_way)
        lines = f"{settings.log_share * 100:g} % of the successful requests get a line here, failed ones always"
        log.info("%s (--log-sample, --log-format)", lines)
        return run_server(app, settings)
    except StartupError:
        raise
    except Exception:
        log.critical("the server ended by a bug", exc_info=True)
        return 1


if __name__ == "__main__":
    leave(main())
