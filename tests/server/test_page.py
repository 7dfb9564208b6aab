"""The playground: its files as they are served, and the page in a real Chromium, on an engine that draws discs."""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import urlopen

import numpy as np
import pytest
import uvicorn
from PIL import Image
from pycocotools import mask as coco_mask
from starlette.testclient import TestClient

from export.sample import SAMPLES, write_samples
from server.http.app import create_app
from server.http.playground import FOLDER, read_page
from server.settings import Settings
from tests.server.fakes import FakeLoader
from tests.server.webdriver import Tab, browser

NAMES = sorted(path.name for path in FOLDER.iterdir())


def png(width: int = 300, height: int = 200, grey: int = 128) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height), (grey, grey, grey)).save(file, "PNG")
    return file.getvalue()


# ---- as files


@pytest.fixture
def client(tiny_bundle: Path) -> Iterator[TestClient]:
    settings = Settings.model_validate({"bundles": tiny_bundle.parent.parent, "threads": 2})
    with TestClient(create_app(settings, FakeLoader()), raise_server_exceptions=False) as client:
        yield client


@pytest.mark.parametrize("path", ["/", *(f"/page/{name}" for name in NAMES)])
def test_every_file_is_served_as_what_it_is_under_a_strict_policy(client: TestClient, path: str) -> None:
    response = client.get(path)
    name = path.removeprefix("/page/").removeprefix("/") or "index.html"
    assert response.status_code == 200
    assert response.content == (FOLDER / name).read_bytes()
    kinds = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
    kinds |= {".png": "image/png", ".jpg": "image/jpeg"}
    assert response.headers["content-type"].split(";")[0] == kinds[Path(name).suffix]
    policy = dict(part.split(" ", 1) for part in response.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert {policy[kind] for kind in ("script-src", "style-src", "img-src", "connect-src")} == {"'self'"}
    assert {policy[kind] for kind in ("base-uri", "form-action", "frame-ancestors")} == {"'none'"}
    assert response.headers["x-content-type-options"] == "nosniff"


def test_a_copy_that_still_holds_is_not_sent_again(client: TestClient) -> None:
    first = client.get("/page/page.js")
    again = client.get("/page/page.js", headers={"if-none-match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["etag"] == first.headers["etag"]
    assert client.get("/page/page.js", headers={"if-none-match": '"old"'}).status_code == 200
    assert client.get("/page/page.css").headers["etag"] != first.headers["etag"]


def test_head_gives_the_headers_alone(client: TestClient) -> None:
    response = client.head("/")
    assert (response.status_code, response.content) == (200, b"")
    assert int(response.headers["content-length"]) == (FOLDER / "index.html").stat().st_size


@pytest.mark.parametrize(
    "name",
    [
        "nothing.js",
        "page",
        "",
        "../page.py",
        "..%2fpage.py",
        "..%2f..%2fsettings.py",
        "%2e%2e/page.py",
        "page.py",
        ".",
        "a%00",
    ],
)
def test_any_other_name_is_a_404_in_our_words(client: TestClient, name: str) -> None:
    response = client.get(f"/page/{name}")
    assert response.status_code == 404
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["code"] == "not_found"


def test_only_files_of_a_known_kind_are_read(tmp_path: Path) -> None:
    for name in ("a.js", "a.js~", "notes.txt", ".b.css.swp"):
        (tmp_path / name).write_text("x")
    assert list(read_page(tmp_path)) == ["a.js"]


def test_the_page_names_no_other_host_and_nothing_inline() -> None:
    for name, file in read_page().items():
        if file.media_type.startswith("image/") and name != "icon.svg":
            continue
        text = file.content.decode().replace('xmlns="http://www.w3.org/2000/svg"', "")
        assert not re.findall(r"(?:https?:)?//[\w-]+\.\w+", text), name
        assert "@import" not in text
    html = (FOLDER / "index.html").read_text(encoding="utf-8")
    assert re.findall(r"<script[^>]*>", html) == ['<script type="module" src="page/page.js">']
    assert "<style" not in html
    assert not re.findall(r"\s(?:style|on\w+)=", html)


def test_the_page_is_no_part_of_the_api(client: TestClient) -> None:
    assert not [path for path in client.get("/openapi.json").json()["paths"] if path == "/" or path.startswith("/page")]


def test_the_samples_are_what_the_project_draws(tmp_path: Path) -> None:
    write_samples(tmp_path)
    for name in SAMPLES:
        drawn, kept = (
            np.asarray(Image.open(folder / name).convert("RGB"), np.float64) for folder in (tmp_path, FOLDER)
        )
        assert drawn.shape == kept.shape
        assert np.abs(drawn - kept).mean() < 1.0  # the last bit of a blur differs between machines
    assert sum((FOLDER / name).stat().st_size for name in SAMPLES) < 400_000


# ---- in a browser


class Site:
    """A server on a free port, in this process; its engine can be held."""

    def __init__(self, bundles: Path, loader: FakeLoader | None = None, **changes: Any) -> None:
        self.loader = loader or FakeLoader()
        settings = Settings.model_validate({"bundles": bundles, "threads": 2, "default_model": "tiny"} | changes)
        config = uvicorn.Config(create_app(settings, self.loader), port=0, log_config=None, lifespan="on")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, name="site")
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)
        self.port = self._server.servers[0].sockets[0].getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}"

    def segment(self, payload: bytes, model: str = "tiny", threshold: float = 0.05) -> dict[str, Any]:
        url = f"{self.address}/v1/models/{model}/segment?score_threshold={threshold}"
        with urlopen(url, payload, timeout=30) as response:
            answer: dict[str, Any] = json.load(response)
        return answer

    def close(self) -> None:
        self.loader.engine.free.set()
        self.loader.may_load.set()
        self._server.should_exit = True
        self._thread.join(30)


@contextmanager
def serving(bundles: Path, loader: FakeLoader | None = None, **changes: Any) -> Iterator[Site]:
    site = Site(bundles, loader, **changes)
    try:
        yield site
    finally:
        site.close()


@pytest.fixture(scope="module")
def bundles(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models: `tiny`, and `zebra` with two versions and a stricter default."""
    folder = tmp_path_factory.mktemp("two")
    shutil.copytree(tiny_bundle, folder / "tiny" / "1")
    for version in (1, 2):
        copy = folder / "zebra" / str(version)
        shutil.copytree(tiny_bundle, copy)
        manifest = json.loads((copy / "manifest.json").read_text())
        manifest |= {"name": "zebra", "version": version, "defaults": {"score_threshold": 0.75}}
        (copy / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture(scope="module")
def site(bundles: Path) -> Iterator[Site]:
    with serving(bundles) as site:
        yield site


@pytest.fixture(scope="module")
def downloads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("downloads")


@pytest.fixture(scope="module")
def chromium(downloads: Path) -> Iterator[Tab]:
    with browser(1280, 900, downloads) as tab:
        yield tab


@pytest.fixture
def tab(chromium: Tab, site: Site) -> Iterator[Tab]:
    """The page, freshly opened; at its end it has asked nobody else, and the console is empty."""
    open_page(chromium, site)
    yield chromium
    hosts = {urlsplit(url).netloc for url in chromium.requested() if not url.startswith(("data:", "blob:"))}
    assert hosts <= {f"127.0.0.1:{site.port}"}
    assert console(chromium) == []


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "it's a picture.png"
    path.write_bytes(png())
    return path


READY = "document.querySelector('#model-facts').className === 'ready'"
ANSWERED = "document.querySelector('#desk').classList.contains('answered')"
TROUBLED = "!document.querySelector('#trouble').hidden"


def open_page(tab: Tab, site: Site) -> None:
    tab.open(site.address)
    tab.wait(READY)
    tab.log("performance")
    tab.log("browser")


def console(tab: Tab, expected: str = "nothing is expected") -> list[str]:
    """What the page wrote and what the browser found wrong since the last call, but for lines with `expected`."""
    return [entry["message"] for entry in tab.log("browser") if expected not in entry["message"]]


def show(tab: Tab, path: Path) -> None:
    tab.upload("#file", path)
    tab.wait(ANSWERED)


def text_of(tab: Tab, selector: str) -> str:
    return str(tab.run("return document.querySelector(arguments[0]).innerText", selector))


def pixels(tab: Tab) -> bytes:
    """The canvas as it is seen after the next frame."""
    script = """
        await new Promise((resolve) => requestAnimationFrame(() => setTimeout(resolve)));
        return document.querySelector('#canvas').toDataURL();"""
    return str(tab.run(script)).encode()


def colour_at(tab: Tab, x: float, y: float, width: int = 300, height: int = 200) -> list[int]:
    """Red, green, blue of the canvas where it shows this point of a picture that is seen whole."""
    script = """
        await new Promise((resolve) => requestAnimationFrame(() => setTimeout(resolve)));
        const canvas = document.querySelector('#canvas');
        const [x, y, width, height] = arguments;
        const scale = Math.min(canvas.width / width, canvas.height / height);
        const place = (at, whole, seen) => Math.floor(seen / 2 + (at - whole / 2) * scale);
        const copy = Object.assign(document.createElement('canvas'), { width: 1, height: 1 }).getContext('2d');
        copy.drawImage(canvas, -place(x, width, canvas.width), -place(y, height, canvas.height));
        return [...copy.getImageData(0, 0, 1, 1).data].slice(0, 3);"""
    return list(tab.run(script, x, y, width, height))


def move(tab: Tab, selector: str, value: float) -> None:
    tab.run(
        "const s = document.querySelector(arguments[0]); s.value = arguments[1]; s.dispatchEvent(new Event('input'))",
        selector,
        value,
    )


def requests_made(tab: Tab) -> int:
    return int(tab.run("return performance.getEntriesByType('resource').filter((e) => e.name.includes('/v1/')).length"))


def test_a_chosen_file_comes_back_with_its_masks_drawn(tab: Tab, site: Site, picture: Path) -> None:
    empty = pixels(tab)
    show(tab, picture)
    found = site.segment(picture.read_bytes())["instances"]
    assert len(found) == 3
    assert pixels(tab) != empty
    assert text_of(tab, "#status").startswith("3 of 3 instances in 300 × 200 pixels")
    rows = tab.run("return [...document.querySelectorAll('#list [role=option]')].map((e) => e.innerText.split(/\\s+/))")
    assert rows == [["blob", f"{each['score']:.3f}", f"{each['area']:,}", "px"] for each in found]
    discs = [colour_at(tab, x, 100) for x in (50, 150, 250)]
    assert len({tuple(disc) for disc in discs} | {(128, 128, 128)}) == 4  # each its own colour, none the picture's
    assert colour_at(tab, 150, 20) == [128, 128, 128]
    assert [url for url in tab.requested() if "/segment" in url] == [
        f"{site.address}/v1/models/tiny/segment?score_threshold=0.05"
    ]


@pytest.mark.parametrize("number", [0, 1])
def test_a_sample_is_one_click_away(tab: Tab, number: int) -> None:
    assert tab.run("return document.querySelectorAll('[data-sample] img')[arguments[0]].naturalWidth", number) == 640
    tab.run("document.querySelectorAll('[data-sample]')[arguments[0]].click()", number)
    tab.wait(ANSWERED)
    assert "3 of 3 instances in 640 × 480 pixels" in text_of(tab, "#status")


@pytest.mark.parametrize(
    "event",
    [
        "new DragEvent('drop', { dataTransfer: files, bubbles: true, cancelable: true })",
        "new ClipboardEvent('paste', { clipboardData: files, bubbles: true })",
    ],
)
def test_a_dropped_and_a_pasted_picture_are_taken(tab: Tab, event: str) -> None:
    tab.run(
        f"""const bytes = Uint8Array.from(arguments[0]);
        const files = new DataTransfer();
        files.items.add(new File([bytes], 'mine.png', {{ type: 'image/png' }}));
        document.querySelector('#frame').dispatchEvent({event});""",
        list(png(90, 60)),
    )
    tab.wait(ANSWERED)
    assert "instances in 90 × 60 pixels" in text_of(tab, "#status")
    assert "mine.png" in text_of(tab, "#lines")


def test_the_threshold_filters_what_is_here_and_asks_nothing(tab: Tab, site: Site, picture: Path) -> None:
    show(tab, picture)
    made = requests_made(tab)
    scores = [instance["score"] for instance in site.segment(picture.read_bytes())["instances"]]
    assert tab.run("return document.querySelector('#threshold').value") == "0.5"  # the model's default
    all_three = pixels(tab)
    move(tab, "#threshold", scores[1] - 0.01)
    assert text_of(tab, "#shown-count") == "2"
    assert tab.run("return document.querySelectorAll('#list [role=option]:not([hidden])').length") == 2
    two = pixels(tab)
    move(tab, "#threshold", 1)
    assert text_of(tab, "#shown-count") == "0"
    none = pixels(tab)
    move(tab, "#threshold", 0.05)
    assert pixels(tab) == all_three  # and everybody has the old colour
    assert len({all_three, two, none}) == 3
    assert requests_made(tab) == made


def test_opacity_changes_the_masks_and_not_the_picture(tab: Tab, picture: Path) -> None:
    show(tab, picture)
    move(tab, "#opacity", 0)
    assert colour_at(tab, 150, 100) == [128, 128, 128]
    move(tab, "#opacity", 1)
    assert colour_at(tab, 150, 100) != [128, 128, 128]
    assert colour_at(tab, 150, 20) == [128, 128, 128]


def test_classes_can_be_taken_out(tab: Tab, picture: Path) -> None:
    answer(tab, [("cell", 0.9, (2, 2)), ("cell", 0.8, (30, 2)), ("fibre", 0.7, (60, 2))])
    show(tab, picture)
    assert text_of(tab, "#classes").split() == ["cell", "2", "fibre", "1"]
    tab.click("#classes input[value=cell]")
    assert text_of(tab, "#shown-count") == "1"
    tab.click("#filtered")
    assert "classes=fibre" in text_of(tab, "#lines")
    tab.click("#classes input[value=fibre]")
    assert text_of(tab, "#shown-count") == "0"


def test_hovering_says_class_score_and_area(tab: Tab, site: Site, picture: Path) -> None:
    show(tab, picture)
    middle = next(each for each in site.segment(picture.read_bytes())["instances"] if 100 < each["bbox"][0] < 150)
    plain = pixels(tab)
    box = tab.run(
        "const b = document.querySelector('#canvas').getBoundingClientRect(); return [b.x, b.y, b.width, b.height]"
    )
    tab.point(box[0] + box[2] / 2, box[1] + box[3] / 2)
    tab.wait("!document.querySelector('#tip').hidden")
    assert text_of(tab, "#tip").split() == ["blob", f"{middle['score']:.3f}", "·", f"{middle['area']:,}", "px"]
    assert pixels(tab) != plain
    tab.point(box[0] + box[2] / 2, box[1] + 5)
    tab.wait("document.querySelector('#tip').hidden")
    assert pixels(tab) == plain


def focused(tab: Tab) -> str:
    return str(tab.run("const e = document.activeElement; return e.dataset.sample ?? e.id"))


def test_everything_can_be_done_with_the_keyboard(tab: Tab) -> None:
    seen: list[str] = []
    while "tab-curl" not in seen and len(seen) < 30:
        tab.press("Tab")
        seen.append(focused(tab))
    assert [name for name in seen if name] == [
        "model", "file", "sample-fluorescence.png", "sample-tissue.jpg", "threshold", "opacity", "list", "tab-curl",
    ]  # fmt: skip
    tab.run("document.querySelector('[data-sample]').focus()")
    tab.press("Enter")
    tab.wait(ANSWERED)
    plain = pixels(tab)

    tab.run("document.querySelector('#list').focus()")
    tab.press("ArrowDown", "ArrowDown")
    active = tab.run("return document.querySelector('#list').getAttribute('aria-activedescendant')")
    assert tab.run("return document.querySelector('#list [aria-selected=true]').id") == active == "instance-1"
    second = pixels(tab)
    assert second != plain
    assert "blob" in text_of(tab, "#tip")
    tab.press("End")
    assert tab.run("return document.querySelector('#list [aria-selected=true]').id") == "instance-2"
    assert pixels(tab) not in (plain, second)
    tab.press("Escape")
    assert pixels(tab) == plain

    tab.run("document.querySelector('#threshold').focus()")
    tab.press("ArrowRight")
    assert text_of(tab, "#threshold-value") == "0.51"
    tab.press("End")
    assert text_of(tab, "#shown-count") == "0"
    tab.run("document.querySelector('#tab-curl').focus()")
    tab.press("ArrowRight")
    assert focused(tab) == "tab-python"
    assert "urllib.request" in text_of(tab, "#lines")


def test_every_control_has_a_name_that_is_read_out(tab: Tab, picture: Path) -> None:
    show(tab, picture)
    tab.command("Accessibility.enable")
    controls = ("button", "slider", "combobox", "checkbox", "listbox", "option", "tab", "tabpanel", "image", "link")

    def read_out() -> list[tuple[str, str]]:
        nodes = tab.command("Accessibility.getFullAXTree")["nodes"]
        found = [node for node in nodes if node.get("role", {}).get("value") in controls]
        return [(node["role"]["value"], node["name"]["value"]) for node in found]

    until = time.monotonic() + 5.0
    told = read_out()
    while time.monotonic() < until and not all(name.strip() for _, name in told):  # the tree follows the page, later
        time.sleep(0.1)
        told = read_out()
    assert {"slider", "combobox", "checkbox", "listbox", "option", "tab", "button"} <= {role for role, _ in told}
    assert not [role for role, name in told if not name.strip()]


def test_the_bar_shows_the_seven_stages(tab: Tab, picture: Path) -> None:
    show(tab, picture)
    names = tab.run("return [...document.querySelectorAll('#stage-legend li')].map((e) => e.innerText.split(' ')[0])")
    assert names == ["receive", "decode", "preprocess", "queue", "inference", "masks", "encode"]
    assert tab.run("return document.querySelectorAll('#stage-bar i').length") == 7
    assert re.fullmatch(r"[\d.]+ m?s in the server, .*", text_of(tab, "#total"))


def test_the_lines_to_copy_make_the_very_same_request(tab: Tab, site: Site, picture: Path) -> None:
    show(tab, picture)
    found = site.segment(picture.read_bytes())["instances"]
    run = {"cwd": picture.parent, "capture_output": True, "text": True, "timeout": 60, "check": True}
    curl = text_of(tab, "#lines")
    assert "score_threshold=0.05" in curl
    if shutil.which("curl"):
        done = subprocess.run(["sh", "-c", curl], **run)  # type: ignore[call-overload]
        assert json.loads(done.stdout)["instances"] == found
    tab.click("#tab-python")
    done = subprocess.run([sys.executable, "-c", text_of(tab, "#lines")], **run)  # type: ignore[call-overload]
    assert done.stdout.splitlines() == [f"blob {each['score']} {each['area']}" for each in found]

    move(tab, "#threshold", found[0]["score"] - 0.001)
    tab.click("#filtered")
    done = subprocess.run([sys.executable, "-c", text_of(tab, "#lines")], **run)  # type: ignore[call-overload]
    assert len(done.stdout.splitlines()) == int(text_of(tab, "#shown-count"))

    tab.run("document.querySelector('[data-sample]').click()")
    tab.wait("document.querySelector('#status').innerText.includes('640')")
    done = subprocess.run([sys.executable, "-c", text_of(tab, "#lines")], **run)  # type: ignore[call-overload]
    assert len(done.stdout.splitlines()) == int(text_of(tab, "#shown-count"))


def test_answer_and_overlay_can_be_kept(tab: Tab, site: Site, picture: Path, downloads: Path) -> None:
    show(tab, picture)
    tab.click("#save-json")
    tab.click("#save-png")
    kept, overlay = downloads / "it's a picture.json", downloads / "it's a picture.overlay.png"
    until = time.monotonic() + 20
    while not (kept.exists() and overlay.exists()):
        assert time.monotonic() < until, sorted(downloads.iterdir())
        time.sleep(0.05)
    found = site.segment(picture.read_bytes())["instances"]
    assert json.loads(kept.read_text())["instances"] == found
    drawn = np.asarray(Image.open(overlay).convert("RGB"))
    assert drawn.shape == (200, 300, 3)  # the picture's own size, not the screen's
    masks = coco_mask.decode([instance["segmentation"] for instance in found]).any(axis=2)
    assert ((drawn != 128).any(axis=2) == masks).all()


def test_another_model_is_asked_anew_with_its_own_default(tab: Tab, site: Site, picture: Path) -> None:
    show(tab, picture)
    labels = tab.run("return [...document.querySelector('#model').options].map((option) => option.text)")
    assert labels == ["tiny", "zebra/1", "zebra/2"]
    tab.run("const m = document.querySelector('#model'); m.value = 2; m.dispatchEvent(new Event('change'))")
    tab.wait(ANSWERED)
    assert tab.run("return document.querySelector('#threshold').value") == "0.75"
    assert f"{site.address}/v1/models/zebra/versions/2/segment?score_threshold=0.05" in tab.requested()
    assert "/v1/models/zebra/versions/2/segment" in text_of(tab, "#lines")


def test_what_no_browser_shows_is_still_segmented(tab: Tab, tmp_path: Path) -> None:
    path = tmp_path / "scan.tiff"
    Image.new("RGB", (300, 200), (90, 90, 90)).save(path)
    show(tab, path)
    assert "the masks stand alone" in text_of(tab, "#status")
    assert colour_at(tab, 150, 100) != colour_at(tab, 150, 20) != [0, 0, 0]


def test_a_picked_instance_is_brought_into_a_zoomed_view(tab: Tab, picture: Path) -> None:
    answer(tab, [("cell", 0.9, (2, 2)), ("cell", 0.8, (275, 175))])
    show(tab, picture)
    for _ in range(4):
        tab.click("#zoom-in")
    away = pixels(tab)
    tab.run("document.querySelector('#list').focus()")
    tab.press("ArrowDown")
    first = pixels(tab)
    tab.press("ArrowDown")
    assert len({away, first, pixels(tab)}) == 3
    frame, tip = tab.run(
        "return ['#frame', '#tip'].map((s) => document.querySelector(s).getBoundingClientRect().toJSON())"
    )
    assert frame["left"] < tip["left"]
    assert tip["right"] < frame["right"]
    assert frame["top"] < tip["top"]
    assert tip["bottom"] < frame["bottom"]


def test_zoom_goes_in_and_back_to_the_whole_picture(tab: Tab, picture: Path) -> None:
    show(tab, picture)
    whole = pixels(tab)
    tab.click("#zoom-in")
    assert pixels(tab) != whole
    tab.click("#zoom-fit")
    assert pixels(tab) == whole


def test_what_is_no_picture_is_refused_in_clear_words(tab: Tab, tmp_path: Path, picture: Path) -> None:
    show(tab, picture)
    path = tmp_path / "letter.txt"
    path.write_text("Dear server, this is no picture.")
    tab.upload("#file", path)
    tab.wait(TROUBLED)
    said = text_of(tab, "#trouble")
    assert said.startswith("The server refused this")
    assert "bad_image" in said
    assert re.search(r"request [0-9a-f]{32}", said)
    assert not tab.run(f"return {ANSWERED}")  # the old masks do not stand beside a new refusal
    assert tab.run("return document.querySelector('#save-json').disabled")
    assert text_of(tab, "#classes") == "as found in the picture"
    assert console(tab, "status of 400") == []
    show(tab, picture)
    assert not tab.run(f"return {TROUBLED}")


@pytest.mark.parametrize("address", ["http://{login}@127.0.0.1:{port}/", "http://127.0.0.1:{port}/"])
def test_with_keys_on_the_browser_lets_its_user_in_by_a_password(
    chromium: Tab, bundles: Path, picture: Path, tmp_path: Path, address: str
) -> None:
    keys = tmp_path / "keys.json"
    entry = {"name": "a", "sha256": hashlib.sha256(b"s3cret").hexdigest(), "may": ["segment"]}
    keys.write_text(json.dumps({"keys": [entry]}))
    with serving(bundles, keys=keys) as site:
        chromium.open(f"http://anybody:s3cret@127.0.0.1:{site.port}/")  # typed, as far as a driver can
        chromium.open(address.format(login="anybody:s3cret", port=site.port))
        chromium.wait(READY)
        show(chromium, picture)
        assert text_of(chromium, "#status").startswith("3 of 3 instances")
        chromium.wait("document.querySelector('#lines').innerText.includes('your key')")
        run = {"cwd": picture.parent, "capture_output": True, "text": True, "timeout": 60, "check": True}
        if shutil.which("curl"):
            curl = text_of(chromium, "#lines").replace("your key", "s3cret")
            done = subprocess.run(["sh", "-c", curl], **run)  # type: ignore[call-overload]
            assert len(json.loads(done.stdout)["instances"]) == 3
        chromium.run("document.querySelector('[data-sample]').click()")
        chromium.wait("document.querySelector('#status').innerText.includes('640')")
        for tab in ("#tab-curl", "#tab-python"):
            chromium.click(tab)
            program = ["sh", "-c"] if tab == "#tab-curl" else [sys.executable, "-c"]
            lines = text_of(chromium, "#lines").replace("your key", "s3cret")
            done = subprocess.run([*program, lines], **run)  # type: ignore[call-overload]
            assert done.stdout, lines
    chromium.log("browser")


def test_a_busy_server_is_told_as_such_and_asked_again(chromium: Tab, bundles: Path, picture: Path) -> None:
    with serving(bundles, queue_limit=1) as site, ThreadPoolExecutor(1) as pool:
        open_page(chromium, site)
        site.loader.engine.free.clear()
        held = pool.submit(site.segment, png())
        assert site.loader.engine.started.wait(10)
        chromium.upload("#file", picture)
        chromium.wait(TROUBLED)
        said = text_of(chromium, "#trouble")
        assert said.startswith("The server is busy")
        assert re.search(r"Try again in \d+ s\.", said)
        assert "overloaded" in said
        site.loader.engine.free.set()
        held.result()
        chromium.click("#again")
        chromium.wait(ANSWERED)
        assert not chromium.run(f"return {TROUBLED}")
        assert console(chromium, "status of 503") == []


def test_a_model_that_still_loads_is_waited_for(chromium: Tab, bundles: Path) -> None:
    loader = FakeLoader()
    loader.may_load.clear()
    with serving(bundles, loader) as site:
        chromium.open(site.address)
        chromium.wait("document.querySelector('#model-facts').innerText.startsWith('loading')")
        loader.may_load.set()
        chromium.wait(READY)


def test_a_server_that_is_gone_is_told_in_plain_words(chromium: Tab, bundles: Path, picture: Path) -> None:
    with serving(bundles) as site:
        open_page(chromium, site)
    chromium.upload("#file", picture)
    chromium.wait(TROUBLED)
    assert text_of(chromium, "#trouble").startswith("No answer came\n\nThe connection to the server broke")
    assert console(chromium, "net::ERR_CONNECTION_REFUSED") == []


@pytest.mark.parametrize(("width", "height"), [(1280, 900), (768, 1024), (360, 740)])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_it_is_readable_in_light_and_dark_and_never_wider_than_the_screen(
    tab: Tab, picture: Path, tmp_path: Path, theme: str, width: int, height: int
) -> None:
    tab.command("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": theme}])
    tab.command(
        "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
    )
    try:
        show(tab, picture)
        assert tab.run("return document.documentElement.scrollWidth") <= width
        (tmp_path / "page.png").write_bytes(tab.screenshot())
        seen = np.asarray(Image.open(tmp_path / "page.png").convert("L"))
        assert (np.median(seen) > 190) == (theme == "light")
        assert contrasts(tab) == []
    finally:
        tab.command("Emulation.clearDeviceMetricsOverride")
        tab.command("Emulation.setEmulatedMedia", features=[])


def contrasts(tab: Tab) -> list[str]:
    """Texts with less contrast than WCAG asks of small print, 4.5 to 1."""
    script = """
        const light = (c) => c.map((v) => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
        const luminance = (c) => { const [r, g, b] = light(c); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
        const parse = (text) => text.match(/[\\d.]+/g).map(Number);
        const behind = (e) => {
          for (; e; e = e.parentElement) {
            const c = parse(getComputedStyle(e).backgroundColor);
            if (c.length === 3 || c[3] > 0.9) return c.slice(0, 3);
          }
          return [255, 255, 255];
        };
        const poor = [];
        for (const e of document.querySelectorAll('body *')) {
          const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
          if (!own || !e.checkVisibility({ visibilityProperty: true }) || e.matches(':disabled')) continue;
          const [a, b] = [parse(getComputedStyle(e).color).slice(0, 3), behind(e)].map(luminance);
          const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
          if (ratio < 4.5) poor.push(`${e.tagName} ${e.id} ${e.textContent.trim().slice(0, 30)} ${ratio.toFixed(2)}`);
        }
        return poor;"""
    return list(tab.run(script))


# ---- its modules, against what we know from elsewhere


def answer(tab: Tab, instances: list[tuple[str, float, tuple[int, int]]], size: tuple[int, int] = (200, 300)) -> None:
    """Have the page's next requests answered with squares of 20 pixels: class, score and corner of each."""
    found = []
    for category, score, (x, y) in instances:
        mask = np.zeros(size, np.uint8, order="F")
        mask[y : y + 20, x : x + 20] = 1
        segmentation = {"size": list(size), "counts": coco_mask.encode(mask)["counts"].decode()}
        known = {"category_id": 1, "category": category, "score": score, "area": int(mask.sum())}
        found.append(known | {"bbox": [x, y, 20, 20], "segmentation": segmentation})
    image = {"width": size[1], "height": size[0]}
    content = {"model": "tiny", "version": "1", "image": image, "instances": found, "truncated": False}
    tab.run(
        """const real = window.fetch;
        window.fetch = (address, options) =>
          options?.method === 'POST' ? Promise.resolve(new Response(arguments[0])) : real(address, options);""",
        json.dumps(content),
    )


def test_run_lengths_are_read_as_pycocotools_writes_them(tab: Tab) -> None:
    rng = np.random.default_rng(3)
    shapes = [(1, 1), (4, 5), (37, 23), (60, 400), (1, 90), (90, 1)]
    masks = [(rng.random(shape) < share) for shape in shapes for share in (0.0, 0.02, 0.5, 0.97, 1.0)]
    masks += [np.pad(np.ones((700, 3), bool), ((40, 3000), (900, 1200)))]  # runs of many digits
    coded = [coco_mask.encode(np.asfortranarray(mask, np.uint8)) for mask in masks]
    wanted = [
        {"size": list(mask.shape), "counts": rle["counts"].decode()} for mask, rle in zip(masks, coded, strict=True)
    ]
    spans = tab.run(
        "const { readSpans } = await import('/page/rle.js'); return arguments[0].map((one) => [...readSpans(one)])",
        wanted,
    )
    for mask, found in zip(masks, spans, strict=True):
        painted = np.zeros_like(mask)
        for column, first, end in np.reshape(found, (-1, 3)).astype(int):
            painted[first:end, column] = True
        assert (painted == mask).all()


@pytest.mark.parametrize("text", ["P", "531P", "5 3", "~", "5é"])
def test_a_string_that_is_no_run_lengths_is_refused(tab: Tab, text: str) -> None:
    script = """const { stringToRuns } = await import('/page/rle.js');
        try { return stringToRuns(arguments[0]); } catch (error) { return error.name; }"""
    assert tab.run(script, text) == "RangeError"


def test_spans_fill_a_view_as_nearest_neighbour_does(tab: Tab) -> None:
    rng = np.random.default_rng(5)
    mask = np.kron(rng.random((9, 12)) < 0.5, np.ones((4, 4), bool))
    rle = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    segmentation = {"size": list(mask.shape), "counts": rle["counts"].decode()}
    script = """
        const [{ readSpans }, { fillLabels }] = [await import('/page/rle.js'), await import('/page/raster.js')];
        const labels = new Uint32Array(80 * 60);
        fillLabels(readSpans(arguments[0]), 7, arguments[1], labels, 80, 60);
        return [...labels];"""
    for scale, left, top in ((1.0, 0.0, 0.0), (0.37, -3.2, 1.5), (3.3, 10.25, 20.75), (1.0, -20.0, -10.0)):
        view = {"scale": scale, "x": left, "y": top}
        labels = np.reshape(tab.run(script, segmentation, view), (60, 80))
        columns = np.floor((np.arange(80) + 0.5) / scale + left).astype(int)
        rows = np.floor((np.arange(60) + 0.5) / scale + top).astype(int)
        inside = ((rows >= 0) & (rows < mask.shape[0]))[:, None] & ((columns >= 0) & (columns < mask.shape[1]))
        wanted = mask[rows.clip(0, mask.shape[0] - 1)][:, columns.clip(0, mask.shape[1] - 1)] & inside
        assert (labels == 7 * wanted).all()


def test_a_mask_too_small_for_the_view_keeps_one_pixel(tab: Tab) -> None:
    script = """
        const { fillLabels } = await import('/page/raster.js');
        const labels = new Uint32Array(100);
        fillLabels(Int32Array.of(500, 300, 301), 1, { scale: 0.01, x: 0, y: 0 }, labels, 10, 10);
        return labels.indexOf(1);"""
    assert tab.run(script) == 3 * 10 + 5


def test_neighbours_differ_in_colour_and_weaker_ones_change_nobody(tab: Tab) -> None:
    rng = np.random.default_rng(1)
    boxes = [{"bbox": [*rng.uniform(0, 500, 2).tolist(), 10, 10]} for _ in range(200)]
    script = "return (await import('/page/colours.js')).assignColours(arguments[0])"
    all_colours, fewer = tab.run(script, boxes), tab.run(script, boxes[:80])
    assert all_colours[:80] == fewer
    assert len(set(all_colours)) == 14
    corners = np.array([box["bbox"][:2] for box in boxes])
    apart = np.linalg.norm(corners[:, None] - corners[None], axis=2) + 1e9 * np.eye(len(boxes))
    nearest = apart.argmin(axis=1)
    assert sum(all_colours[i] == all_colours[j] for i, j in enumerate(nearest)) <= 2
