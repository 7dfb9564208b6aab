"""`python -m server`: serve the bundles of a folder."""

from __future__ import annotations

import logging
import sys

import uvicorn
from pydantic import ValidationError
from pydantic_settings import CliApp

from server.errors import StartupError
from server.http.app import create_app
from server.http.serving import Server, protocol_with_header_timeout
from server.settings import Settings

LINE = "%(asctime)s %(levelname)s %(message)s"


def main() -> int:
    """0 after a clean stop, 2 when it cannot start."""
    logging.basicConfig(level=logging.INFO, format=LINE)
    try:
        settings = CliApp.run(Settings)
        app = create_app(settings)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        flag = "--" + "-".join(str(part) for part in first["loc"]).replace("_", "-")
        print(f"{flag}: {first['msg']} (got {first['input']!r}); see --help", file=sys.stderr)
        return 2
    except StartupError as error:
        print(f"cannot start: {error}", file=sys.stderr)
        return 2
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        http=protocol_with_header_timeout(settings.header_timeout_s),
        loop="uvloop" if sys.platform != "win32" else "asyncio",
        ws="none",
        lifespan="on",
        access_log=False,
        log_config=None,
        server_header=False,
        timeout_keep_alive=settings.keep_alive_s,
        timeout_graceful_shutdown=settings.drain_s,
    )

    def drain() -> None:
        app.state.gate.draining = True

    server = Server(config, drain)
    server.run()
    return 0 if server.started else 2


if __name__ == "__main__":
    sys.exit(main())
