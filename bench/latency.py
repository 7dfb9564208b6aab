"""One caller, one picture after the other, through HTTP: what a request costs end to end, and the server's memory."""

from __future__ import annotations

import http.client
import io
import os
import re
import statistics
import sys
import time
from pathlib import Path

from PIL import Image

from export.sample import draw
from training.nuclei.server_process import serve

TURNS = 30
WARM_UP = 3


def main() -> int:
    picture = io.BytesIO()
    Image.fromarray(draw((512, 512), seed=0)).save(picture, "PNG")
    with serve(Path("bundles")) as port:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        seconds = []
        for turn in range(WARM_UP + TURNS):
            began = time.perf_counter()
            connection.request("POST", "/v1/segment", picture.getvalue())
            response = connection.getresponse()
            response.read()
            if response.status != 200:
                print(f"the server answered {response.status}", file=sys.stderr)
                return 1
            if turn >= WARM_UP:
                seconds.append(time.perf_counter() - began)
        connection.request("GET", "/metrics")
        metrics = connection.getresponse().read().decode()
        connection.close()
    memory = re.findall(r"^process_resident_memory_bytes\S* (\S+)", metrics, re.MULTILINE)
    load = f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
    print(f"nuclei, drawn 512x512 PNG, one caller, {TURNS} requests; {load}")
    quantiles = statistics.quantiles(seconds, n=20)
    print(f"{'median ms':>10} {'p95 ms':>8} {'least':>8} {'resident MB':>12}")
    resident = f"{sum(map(float, memory)) / 1e6:.0f}"
    median, least = statistics.median(seconds), min(seconds)
    print(f"{1000 * median:>10.1f} {1000 * quantiles[-1]:>8.1f} {1000 * least:>8.1f} {resident:>12}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
