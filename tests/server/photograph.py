"""The README's pictures of the playground: a real server and model, a real browser, only pictures the project drew.

    python -m tests.server.photograph bundles docs/pictures

Letters look as this machine's fonts do; the pictures in git were taken with Inter (Debian: fonts-inter) as `system-ui`.
"""

from __future__ import annotations

import base64
import io
import sys
import time
from pathlib import Path

from PIL import Image

from tests.server.webdriver import Tab, browser
from training.nuclei.server_process import serve

WIDTH, HEIGHT = 1180, 740
SCENES = {
    "playground-light.png": ("light", "sample-tissue.jpg"),
    "playground-dark.png": ("dark", "sample-fluorescence.png"),
}


def photograph(tab: Tab, address: str, theme: str, sample: str) -> Image.Image:
    """The page with a sample's masks, one instance picked."""
    tab.command("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": theme}])
    tab.command("Emulation.setDeviceMetricsOverride", width=WIDTH, height=HEIGHT, deviceScaleFactor=1, mobile=False)
    tab.open(address)
    tab.wait("document.querySelector('#model-facts').className === 'ready'")
    for _ in range(2):  # the second answer comes from a warm server
        tab.run("document.querySelector(`[data-sample='${arguments[0]}']`).click()", sample)
        tab.wait("document.querySelector('#desk').classList.contains('answered')")
        time.sleep(0.5)
    tab.run("document.querySelectorAll('#list [role=option]')[11].click()")
    time.sleep(0.5)
    whole = tab.command("Page.captureScreenshot", captureBeyondViewport=True)["data"]
    return Image.open(io.BytesIO(base64.b64decode(whole))).convert("RGB")


def main(bundles: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with serve(bundles) as port, browser(WIDTH, HEIGHT) as tab:
        for name, (theme, sample) in SCENES.items():
            picture = photograph(tab, f"http://127.0.0.1:{port}/", theme, sample)
            coarse = picture.point(lambda value: (value + 2) // 5 * 5)  # unseen, and a third less to keep in git
            coarse.save(folder / name, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
