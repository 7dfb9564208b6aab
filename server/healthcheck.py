"""`python -m server.healthcheck`: 0 when the server of this container is ready, 1 when it is not. For HEALTHCHECK.

Imports nothing but the standard library, so that asking every ten seconds costs little.
"""

from __future__ import annotations

import http.client
import os
import sys

TIMEOUT_S = 2.0


def main() -> int:
    port = int(os.environ.get("MASKSERVE_PORT", "8000"))
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", "/readyz")
        response = connection.getresponse()
        body = response.read().decode("utf-8", "replace")
    except (OSError, http.client.HTTPException) as error:
        print(f"no answer on port {port}: {error}", file=sys.stderr)
        return 1
    finally:
        connection.close()
    print(body)
    return 0 if response.status == 200 else 1


if __name__ == "__main__":
    sys.exit(main())
