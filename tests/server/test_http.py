"""The HTTP contract, in process, on an engine that draws three discs."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from starlette.testclient import TestClient

from server import images
from server.formats import FORMATS
from server.http.app import create_app
from server.http.segmenting import wants_overlay
from server.parameters import Parameters
from server.settings import Settings
from server.stages import STAGES
from tests.server.fakes import FakeLoader

Open = Callable[..., TestClient]


def png(width: int = 60, height: int = 40, grey: int = 128) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height), (grey, grey, grey)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def loader() -> FakeLoader:
    return FakeLoader()


@pytest.fixture
def open_client(tiny_bundle: Path, loader: FakeLoader) -> Iterator[Open]:
    """A running application with the given settings."""
    opened: list[TestClient] = []

    def opening(**changes: Any) -> TestClient:
        settings = Settings.model_validate({"bundles": tiny_bundle.parent.parent, "threads": 2} | changes)
        client = TestClient(create_app(settings, loader), raise_server_exceptions=False)
        client.__enter__()
        opened.append(client)
        if loader.may_load.is_set():
            wait_until(lambda: client.get("/readyz").json()["models"]["tiny/1"]["state"] != "loading")
        return client

    yield opening
    loader.engine.free.set()
    loader.may_load.set()
    for client in opened:
        client.__exit__(None, None, None)


@pytest.fixture
def client(open_client: Open) -> TestClient:
    return open_client()


def wait_until(condition: Callable[[], bool], patience_s: float = 10.0) -> None:
    until = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.005)


def is_ready(client: TestClient) -> bool:
    return bool(client.get("/readyz").status_code == 200)


def metric(client: TestClient, name: str, **labels: str) -> float:
    """Sum of the series of one metric that carry these labels."""
    total = 0.0
    for line in client.get("/metrics").text.splitlines():
        if re.match(rf"{name}[{{ ]", line) and all(f'{key}="{value}"' in line for key, value in labels.items()):
            total += float(line.rsplit(" ", 1)[1])
    return total


def assert_problem(response: Any, status: int, code: str) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    content = response.json()
    assert {"type", "title", "status", "detail", "code", "request_id"} <= content.keys()
    assert (content["status"], content["code"]) == (status, code)
    assert content["request_id"] == response.headers["x-request-id"]
    assert not re.search(r"Traceback|/some/|\.py|0x[0-9a-f]{6}", response.text)
    return content


def test_an_image_goes_in_and_coco_masks_come_out(client: TestClient) -> None:
    response = client.post("/v1/segment?score_threshold=0.1", content=png(60, 40))
    assert response.status_code == 200
    answer = response.json()
    assert (answer["model"], answer["version"]) == ("tiny", "1")
    assert answer["image"] == {"width": 60, "height": 40}
    assert answer["truncated"] is False
    assert answer["batch_size"] == 1
    assert len(answer["instances"]) == 3
    scores = [instance["score"] for instance in answer["instances"]]
    assert scores == sorted(scores, reverse=True)
    for instance in answer["instances"]:
        assert (instance["category_id"], instance["category"]) == (1, "blob")
        assert instance["segmentation"]["size"] == [40, 60]
        mask = coco_mask.decode(instance["segmentation"])
        assert mask.sum() == instance["area"] > 0
        rows, columns = np.nonzero(mask)
        x, y, width, height = instance["bbox"]
        assert (x, y) == (columns.min(), rows.min())
        assert (x + width, y + height) == (columns.max() + 1, rows.max() + 1)


@pytest.mark.parametrize("path", ["/v1/segment", "/v1/models/tiny/segment", "/v1/models/tiny/versions/1/segment"])
def test_all_three_paths_lead_to_the_model(client: TestClient, path: str) -> None:
    assert len(client.post(path, content=png()).json()["instances"]) == 3


def test_the_threshold_filters_and_the_default_is_the_models(client: TestClient) -> None:
    every = client.post("/v1/segment?score_threshold=0", content=png()).json()["instances"]
    fewer = client.post(f"/v1/segment?score_threshold={every[1]['score']}", content=png()).json()["instances"]
    default = client.post("/v1/segment", content=png()).json()["instances"]
    assert [i["score"] for i in fewer] == [i["score"] for i in every[:2]]
    assert default == [i for i in every if i["score"] >= 0.5]
    assert client.post("/v1/segment?score_threshold=1", content=png()).json()["instances"] == []


def test_max_instances_keeps_the_best_and_says_that_it_cut(client: TestClient) -> None:
    every = client.post("/v1/segment", content=png()).json()
    best = client.post("/v1/segment?max_instances=1", content=png()).json()
    assert best["instances"] == every["instances"][:1]
    assert best["truncated"] is True
    assert client.post("/v1/segment?max_instances=3", content=png()).json()["truncated"] is False


def test_classes_choose_and_unknown_ones_are_refused(client: TestClient) -> None:
    assert len(client.post("/v1/segment?classes=blob,1", content=png()).json()["instances"]) == 3
    problem = assert_problem(client.post("/v1/segment?classes=cat", content=png()), 422, "bad_parameter")
    assert "cat" in problem["detail"]
    assert "blob" in problem["detail"]


def test_masks_none_leaves_the_masks_out(client: TestClient) -> None:
    answer = client.post("/v1/segment?masks=none", content=png()).json()
    assert len(answer["instances"]) == 3
    assert all("segmentation" not in instance for instance in answer["instances"])


def test_an_answer_over_the_limit_is_cut_and_says_so(open_client: Open) -> None:
    answer = open_client(max_response_mb=0.0005).post("/v1/segment", content=png()).json()
    assert 0 < len(answer["instances"]) < 3
    assert answer["truncated"] is True


def test_timing_is_told_in_the_body_and_in_the_header(client: TestClient) -> None:
    response = client.post("/v1/segment", content=png())
    timing = response.json()["timing_ms"]
    assert list(timing) == [*STAGES[:-1], "total"]
    assert sum(timing[stage] for stage in STAGES[:-1]) == pytest.approx(timing["total"], abs=0.01)
    assert re.findall(r"(\w+);dur=[\d.]+", response.headers["server-timing"]) == list(STAGES)


def test_a_callers_request_id_is_kept_when_it_is_harmless(client: TestClient) -> None:
    for sent, kept in (("order-66_a.b", True), ("a" * 128, True), ("a" * 129, False), ("a b", False), ('"', False)):
        got = client.post("/v1/segment", content=png(), headers={"x-request-id": sent}).headers["x-request-id"]
        assert (got == sent) is kept
        assert re.fullmatch(r"[A-Za-z0-9._-]{1,128}", got)


@pytest.mark.parametrize(
    ("path", "content", "status", "code"),
    [
        ("/v1/segment", b"", 400, "bad_image"),
        ("/v1/segment", b"hello, this is no picture", 400, "bad_image"),
        ("/v1/segment", png()[:-30], 400, "truncated_image"),
        ("/v1/segment", b"<svg xmlns='http://www.w3.org/2000/svg'/>", 415, "unsupported_media"),
        ("/v1/segment?max_instances=0", png(), 422, "bad_parameter"),
        ("/v1/segment?mask=rle", png(), 422, "bad_parameter"),
        ("/v1/segment?masks=rle&masks=none", png(), 422, "bad_parameter"),
        ("/v1/models/none/segment", png(), 404, "unknown_model"),
        ("/v1/models/..%2f..%2fetc/segment", png(), 404, "not_found"),
        ("/v1/models/tiny/versions/2/segment", png(), 404, "unknown_version"),
        ("/v1/models/tiny/versions/one/segment", png(), 404, "unknown_version"),
        ("/v1/segments", png(), 404, "not_found"),
    ],
)
def test_what_the_caller_can_fix_is_told_as_a_problem(
    client: TestClient, path: str, content: bytes, status: int, code: str
) -> None:
    assert_problem(client.post(path, content=content), status, code)


def test_another_method_is_refused_with_those_allowed(client: TestClient) -> None:
    response = client.get("/v1/segment")
    assert_problem(response, 405, "method_not_allowed")
    assert response.headers["allow"] == "POST"


def form(*pictures: bytes) -> list[tuple[str, tuple[str, bytes, str]]]:
    return [("image", (f"{number}.png", picture, "image/png")) for number, picture in enumerate(pictures)]


def test_several_pictures_are_answered_in_order(client: TestClient) -> None:
    sizes = [(60, 40), (50, 30), (90, 64), (60, 40)]
    response = client.post("/v1/segment", files=form(*(png(*size) for size in sizes)))
    assert response.status_code == 200
    results = response.json()["results"]
    assert [(r["image"]["width"], r["image"]["height"]) for r in results] == sizes
    for result, size in zip(results, sizes, strict=True):
        alone = client.post("/v1/segment", content=png(*size)).json()
        assert result["instances"] == alone["instances"]
        assert sum(result["timing_ms"][stage] for stage in STAGES[:-1]) == pytest.approx(
            result["timing_ms"]["total"], abs=0.01
        )
    assert re.findall(r"(\w+);dur", response.headers["server-timing"]) == list(STAGES)
    assert metric(client, "seg_images_total") == 4 + len(sizes)
    assert metric(client, "seg_stage_seconds_sum") == pytest.approx(metric(client, "seg_request_seconds_sum"))


def test_a_bad_picture_among_good_ones_has_its_error_in_its_place(client: TestClient) -> None:
    response = client.post("/v1/segment", files=form(png(), b"no picture", png()[:-30], png()))
    assert response.status_code == 200
    results = response.json()["results"]
    assert [result.get("error", {}).get("code") for result in results] == [None, "bad_image", "truncated_image", None]
    assert results[1]["error"]["request_id"] == response.headers["x-request-id"]
    assert metric(client, "seg_failures_total", code="bad_image") == 1
    assert metric(client, "seg_images_total") == 2


def test_the_status_tells_when_every_picture_failed(client: TestClient) -> None:
    response = client.post("/v1/segment", files=form(b"no picture", b"neither"))
    assert response.status_code == 400
    assert [result["error"]["code"] for result in response.json()["results"]] == ["bad_image", "bad_image"]


def test_one_picture_in_a_form_is_answered_like_one_picture(client: TestClient) -> None:
    assert len(client.post("/v1/segment", files=form(png())).json()["instances"]) == 3
    assert_problem(client.post("/v1/segment", files=form(b"no picture")), 400, "bad_image")


def test_too_many_pictures_are_refused(open_client: Open) -> None:
    client = open_client(max_images=2)
    assert_problem(client.post("/v1/segment", files=form(png(), png(), png())), 413, "too_many_images")
    assert client.post("/v1/segment", files=form(png(), png())).status_code == 200


def test_all_pictures_of_a_request_that_is_let_in_are_answered(open_client: Open, loader: FakeLoader) -> None:
    loader.engine.delay_s = 0.02
    client = open_client(max_wait_ms=1, max_batch=1)
    client.post("/v1/segment", content=png())  # measures the pace
    results = client.post("/v1/segment", files=form(*[png()] * 10)).json()["results"]
    assert all("instances" in result for result in results)


def test_a_picture_may_come_as_base64(client: TestClient) -> None:
    body = {"image": base64.b64encode(png()).decode()}
    assert len(client.post("/v1/segment", json=body).json()["instances"]) == 3
    assert_problem(client.post("/v1/segment", json={"image": "&"}), 400, "bad_request")
    assert_problem(client.post("/v1/segment", json={"url": "file:///etc/passwd"}), 422, "bad_parameter")


def test_with_keys_only_health_is_open_and_a_quota_is_told(open_client: Open, tmp_path: Path) -> None:
    digest = hashlib.sha256(b"good").hexdigest()
    entry = {"name": "a", "sha256": digest, "may": ["segment"], "per_second": 0.1, "burst": 2}
    (tmp_path / "keys.json").write_text(json.dumps({"keys": [entry]}))
    client = open_client(keys=tmp_path / "keys.json")
    good = {"authorization": "Bearer good"}
    refused = client.post("/v1/segment", content=png())
    assert_problem(refused, 401, "unauthorized")
    assert refused.headers.get_list("www-authenticate") == ["Bearer", 'Basic realm="maskserve", charset="UTF-8"']
    assert_problem(client.get("/metrics", headers=good), 403, "forbidden")
    assert [client.post("/v1/segment", content=png(), headers=good).status_code for _ in range(2)] == [200, 200]
    limited = client.post("/v1/segment", content=png(), headers=good)
    problem = assert_problem(limited, 429, "rate_limited")
    assert 0 < problem["retry_after_ms"] <= 10_000
    assert 1 <= int(limited.headers["retry-after"]) <= 10
    assert client.get("/livez").status_code == 200


def test_a_wrong_content_type_is_not_believed(client: TestClient) -> None:
    response = client.post("/v1/segment", content=png(), headers={"content-type": "image/jpeg"})
    assert response.status_code == 200


def test_a_body_over_the_limit_is_refused_with_and_without_its_length(open_client: Open) -> None:
    client = open_client(max_body_mb=0.01)
    response = client.post("/v1/segment", content=b"x" * 10_001)
    problem = assert_problem(response, 413, "body_too_large")
    assert "0.01 MB" in problem["detail"]
    assert response.headers["connection"] == "close"
    assert_problem(client.post("/v1/segment", content=(b"x" * 1000 for _ in range(11))), 413, "body_too_large")
    assert_problem(client.post("/v1/segment", content=b"x" * 10_000), 400, "bad_image")


@pytest.mark.parametrize("masks", FORMATS)
def test_every_form_of_masks_is_cut_to_the_limit_and_says_so(open_client: Open, masks: str) -> None:
    whole = open_client().post(f"/v1/segment?masks={masks}", content=png()).json()
    room = len(json.dumps(whole["instances"][:2])) + len(whole.get("label_map", "")) + 30
    cut = open_client(max_response_mb=room / 1e6).post(f"/v1/segment?masks={masks}", content=png()).json()
    assert len(cut["instances"]) in (1, 2)
    assert cut["instances"] == whole["instances"][: len(cut["instances"])]
    assert cut["truncated"] is True
    if masks == "png":
        label_map = Image.open(io.BytesIO(base64.b64decode(cut["label_map"])))
        assert set(np.unique(np.asarray(label_map))) == {0, *range(1, len(cut["instances"]) + 1)}


def test_the_overlay_comes_by_accept_and_has_the_size_of_the_picture(client: TestClient) -> None:
    response = client.post("/v1/segment", content=png(60, 40, grey=90), headers={"accept": "image/png"})
    assert response.status_code == 200
    assert response.headers["content-type"] == "image/png"
    drawing = np.asarray(Image.open(io.BytesIO(response.content)))
    assert drawing.shape == (40, 60, 3)
    touched = (drawing != 90).any(axis=2)
    answer = client.post("/v1/segment", content=png(60, 40, grey=90)).json()
    wanted = np.zeros((40, 60), bool)
    for instance in answer["instances"]:
        wanted |= coco_mask.decode(instance["segmentation"]).astype(bool)
    assert (touched == wanted).all()
    assert re.findall(r"(\w+);dur", response.headers["server-timing"]) == list(STAGES)
    assert metric(client, "seg_instances_sum") == 6


def test_an_overlay_is_of_one_picture_and_takes_no_masks(open_client: Open) -> None:
    client = open_client()
    accept = {"accept": "image/png"}
    assert_problem(client.post("/v1/segment", files=form(png(), png()), headers=accept), 400, "bad_request")
    assert_problem(client.post("/v1/segment?masks=rle", content=png(), headers=accept), 422, "bad_parameter")
    assert_problem(client.post("/v1/segment", content=b"no picture", headers=accept), 400, "bad_image")
    small = open_client(max_response_mb=0.0001)
    assert_problem(small.post("/v1/segment", content=png(), headers=accept), 413, "image_too_large")


@pytest.mark.parametrize(
    ("accept", "picture"),
    [
        ("image/png", True),
        ("image/png, */*", True),
        ("image/png;q=0.5, */*;q=0.1", True),
        ("application/json;q=0.2, image/png", True),
        ("*/*", False),
        ("", False),
        ("text/html,image/avif,image/webp,*/*;q=0.8", False),
        ("application/json, image/png", False),
        ("image/png;q=0.5, */*", False),
        ("image/png;q=0", False),
        ("image/png;q=x", False),
        ("text/html", False),
    ],
)
def test_json_is_the_answer_unless_a_picture_is_preferred(accept: str, picture: bool) -> None:
    assert wants_overlay(accept) is picture


def test_an_image_over_the_limit_is_refused_from_its_header(open_client: Open) -> None:
    client = open_client(max_megapixels=0.01)
    assert_problem(client.post("/v1/segment", content=png(101, 100)), 413, "image_too_large")
    assert client.post("/v1/segment", content=png(100, 100)).status_code == 200


def test_an_engine_error_is_ours_and_tells_nothing_of_the_inside(client: TestClient, loader: FakeLoader) -> None:
    response = client.post("/v1/segment", content=png(grey=loader.engine.poison))
    assert_problem(response, 500, "engine_failed")
    assert "secret" not in response.text
    assert client.post("/v1/segment", content=png()).status_code == 200


def test_a_bug_is_answered_as_a_problem_too(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object, **named: object) -> None:
        raise ZeroDivisionError("secret detail")

    monkeypatch.setattr(images, "decode", broken)
    response = client.post("/v1/segment", content=png())
    assert_problem(response, 500, "internal")
    assert "secret" not in response.text


def test_an_answer_of_nan_is_ours_and_never_reaches_json(client: TestClient, loader: FakeLoader) -> None:
    response = client.post("/v1/segment", content=png(grey=loader.engine.nan))
    assert_problem(response, 500, "model_output_invalid")
    assert metric(client, "seg_failures_total", code="model_output_invalid") == 1


def test_a_server_that_shuts_down_says_so(open_client: Open) -> None:
    client = open_client()
    client.app.state.gate.draining = True  # type: ignore[attr-defined]
    response = client.post("/v1/segment", content=png())
    assert_problem(response, 503, "draining")
    assert response.headers["connection"] == "close"
    assert client.get("/readyz").status_code == 503
    assert client.get("/livez").status_code == 200


def test_priority_is_only_for_keys_that_hold_it(open_client: Open, tmp_path: Path) -> None:
    client = open_client()
    assert_problem(client.post("/v1/segment?priority=1", content=png()), 403, "forbidden")
    entries = [
        {"name": name, "sha256": hashlib.sha256(name.encode()).hexdigest(), "may": may}
        for name, may in (("plain", ["segment"]), ("first", ["segment", "priority"]))
    ]
    (tmp_path / "keys.json").write_text(json.dumps({"keys": entries}))
    client = open_client(keys=tmp_path / "keys.json")
    for name, status in (("plain", 403), ("first", 200)):
        headers = {"authorization": f"Bearer {name}"}
        assert client.post("/v1/segment?priority=9", content=png(), headers=headers).status_code == status


def test_a_request_of_priority_is_not_refused_for_who_waits_behind_it(
    open_client: Open, loader: FakeLoader, tmp_path: Path
) -> None:
    key = {"name": "a", "sha256": hashlib.sha256(b"a").hexdigest(), "may": ["segment", "metrics", "priority"]}
    (tmp_path / "keys.json").write_text(json.dumps({"keys": [key]}))
    client = open_client(keys=tmp_path / "keys.json", max_wait_ms=300, max_batch=1)
    client.headers["authorization"] = "Bearer a"
    loader.engine.delay_s = 0.2
    with ThreadPoolExecutor(4) as pool:
        crowd = [pool.submit(client.post, "/v1/segment", content=png()) for _ in range(4)]
        assert [response.result().status_code for response in crowd] == [200] * 4  # so much is known of the engine
        loader.engine.free.clear()
        loader.engine.started.clear()
        held = [pool.submit(client.post, "/v1/segment", content=png())]
        loader.engine.started.wait(10)
        time.sleep(loader.engine.delay_s)  # then it is about to be free, as far as is known
        held += [pool.submit(client.post, "/v1/segment", content=png()) for _ in range(2)]
        wait_until(lambda: metric(client, "seg_queue_depth") == 2)
        assert_problem(client.post("/v1/segment", content=png()), 503, "overloaded")
        assert_problem(client.post("/v1/segment?priority=0", content=png()), 503, "overloaded")
        held.append(pool.submit(client.post, "/v1/segment?priority=1", content=png()))
        wait_until(lambda: metric(client, "seg_queue_depth") == 3)
        loader.engine.free.set()
        assert [response.result().status_code for response in held] == [200] * 4


def test_a_deadline_that_passes_is_a_504(client: TestClient, loader: FakeLoader) -> None:
    loader.engine.delay_s = 0.5
    began = time.monotonic()
    assert_problem(client.post("/v1/segment?timeout_ms=100", content=png()), 504, "deadline_exceeded")
    assert time.monotonic() - began < 0.45


def test_too_many_at_once_get_503_with_the_time_to_come_back(open_client: Open, loader: FakeLoader) -> None:
    client = open_client(queue_limit=2)
    loader.engine.free.clear()
    with ThreadPoolExecutor(2) as pool:
        held = [pool.submit(client.post, "/v1/segment", content=png())]
        loader.engine.started.wait(10)
        held.append(pool.submit(client.post, "/v1/segment", content=png()))
        wait_until(lambda: metric(client, "seg_queue_depth") == 1)
        response = client.post("/v1/segment", content=png())
        problem = assert_problem(response, 503, "overloaded")
        assert int(response.headers["retry-after"]) >= 1
        assert problem["retry_after_ms"] >= 0
        loader.engine.free.set()
        assert [h.result().status_code for h in held] == [200, 200]
    assert client.post("/v1/segment", content=png()).status_code == 200
    assert metric(client, "seg_rejected_total", reason="overloaded") == 1


def test_nothing_is_served_before_it_is_proven(open_client: Open, loader: FakeLoader) -> None:
    loader.may_load.clear()
    client = open_client()
    assert client.get("/livez").status_code == 200
    ready = client.get("/readyz")
    assert ready.status_code == 503
    assert ready.json()["models"]["tiny/1"]["state"] == "loading"
    response = client.post("/v1/segment", content=png())
    assert_problem(response, 503, "not_ready")
    assert response.headers["retry-after"] == "1"
    assert metric(client, "seg_model_ready") == 0
    loader.may_load.set()
    wait_until(lambda: client.get("/readyz").status_code == 200)
    assert metric(client, "seg_model_ready") == 1
    assert client.post("/v1/segment", content=png()).status_code == 200


def test_a_bundle_that_does_not_load_is_told_by_readyz_without_paths(
    tiny_bundle: Path, tmp_path: Path, loader: FakeLoader
) -> None:
    shutil.copytree(tiny_bundle, tmp_path / "tiny" / "1")
    (tmp_path / "tiny" / "1" / "model.onnx").write_bytes(b"damaged")
    with TestClient(create_app(Settings.model_validate({"bundles": tmp_path}), loader)) as client:
        wait_until(lambda: client.get("/readyz").json()["models"]["tiny/1"]["state"] == "failed")
        ready = client.get("/readyz")
        assert ready.status_code == 503
        assert "HashMismatch" in ready.text
        assert str(tmp_path) not in ready.text
        assert_problem(client.post("/v1/segment", content=png()), 503, "not_ready")


def test_several_models_need_a_name_or_a_default(tiny_bundle: Path, tmp_path: Path, loader: FakeLoader) -> None:
    for name in ("one", "two"):
        folder = tmp_path / name / "1"
        shutil.copytree(tiny_bundle, folder)
        manifest = json.loads((folder / "manifest.json").read_text()) | {"name": name}
        (folder / "manifest.json").write_text(json.dumps(manifest))
    for default, status in ((None, 422), ("two", 200)):
        settings = Settings.model_validate({"bundles": tmp_path, "default_model": default})
        with TestClient(create_app(settings, loader)) as client:
            wait_until(partial(is_ready, client))
            response = client.post("/v1/segment", content=png())
            assert response.status_code == status
            if default is None:
                assert "one, two" in assert_problem(response, 422, "bad_parameter")["detail"]
            else:
                assert response.json()["model"] == "two"
            assert client.post("/v1/models/one/segment", content=png()).json()["model"] == "one"


def test_models_are_listed_with_state_defaults_and_manifest(client: TestClient) -> None:
    (model,) = client.get("/v1/models").json()["models"]
    assert (model["name"], model["version"], model["state"]) == ("tiny", "1", "ready")
    assert model["defaults"] == {"score_threshold": 0.5}
    assert model["manifest"]["masks"]["kind"] == "center_offsets"
    assert client.get("/v1/models/tiny").json()["models"] == [model]
    assert_problem(client.get("/v1/models/none"), 404, "unknown_model")


def test_the_metrics_count_what_happened(client: TestClient) -> None:
    for _ in range(3):
        client.post("/v1/segment", content=png())
    client.post("/v1/segment", content=b"no picture")
    client.post("/v1/models/zzz/segment", content=png())
    assert metric(client, "seg_requests_total", model="tiny", status="200") == 3
    assert metric(client, "seg_requests_total", model="tiny", status="400") == 1
    assert metric(client, "seg_requests_total", model="", status="404") == 1
    assert metric(client, "seg_failures_total", code="bad_image") == 1
    assert metric(client, "seg_images_total") == 3
    assert metric(client, "seg_instances_sum") == 9
    assert metric(client, "seg_image_pixels_sum") == 3 * 60 * 40
    assert metric(client, "seg_batch_size_count") == 3
    assert metric(client, "seg_engine_busy_seconds_total") > 0
    assert metric(client, "seg_model_info", kind="center_offsets", engine="fake", precision="fp32") == 1
    assert metric(client, "seg_queue_limit") == 64 * 16
    for stage in STAGES:
        assert metric(client, "seg_stage_seconds_count", model="tiny", stage=stage) >= 3
    total = metric(client, "seg_request_seconds_sum")
    assert metric(client, "seg_stage_seconds_sum") == pytest.approx(total)
    assert "zzz" not in client.get("/metrics").text


def test_the_engine_is_closed_with_the_application(tiny_bundle: Path, loader: FakeLoader) -> None:
    settings = Settings.model_validate({"bundles": tiny_bundle.parent.parent})
    with TestClient(create_app(settings, loader)) as client:
        wait_until(partial(is_ready, client))
        assert not loader.engine.closed
    assert loader.engine.closed


def test_openapi_names_every_parameter_and_every_code(client: TestClient) -> None:
    operation = client.get("/openapi.json").json()["paths"]["/v1/segment"]["post"]
    assert {p["name"] for p in operation["parameters"]} == set(Parameters.model_fields)
    problems = [
        example["value"]
        for response in operation["responses"].values()
        for example in response["content"].get("application/problem+json", {}).get("examples", {}).values()
    ]
    assert {problem["code"] for problem in problems} >= {"bad_image", "overloaded", "deadline_exceeded", "rate_limited"}
    assert all({"type", "title", "status", "detail", "code", "request_id"} <= problem.keys() for problem in problems)


def test_the_example_of_an_answer_has_the_form_of_a_real_one(client: TestClient) -> None:
    def form_of(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: form_of(inner) for key, inner in value.items()}
        return [form_of(value[0])] if isinstance(value, list) and value else type(value).__name__

    operation = client.get("/openapi.json").json()["paths"]["/v1/segment"]["post"]
    example = operation["responses"]["200"]["content"]["application/json"]["example"]
    assert form_of(example) == form_of(client.post("/v1/segment", content=png()).json())
    (instance,) = example["instances"]
    mask = coco_mask.decode(instance["segmentation"])
    assert mask.sum() == instance["area"]
    rows, columns = np.nonzero(mask)
    assert instance["bbox"][:2] == [columns.min(), rows.min()]


def test_the_documentation_page_asks_no_other_host(client: TestClient) -> None:
    page = client.get("/docs")
    assert page.status_code == 200
    links = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert sorted(links) == ["data:,", "docs/swagger-ui-bundle.js", "docs/swagger-ui.css"]
    for link in set(links) - {"data:,"}:
        assert client.get(f"/{link}").status_code == 200
    assert "http://" not in page.text
    assert "https://" not in page.text
