"""What is counted of a request, and that counting finds its series once."""

from __future__ import annotations

import re

import pytest

from server.http.access import CLIENT_GONE, Picture, Record
from server.http.counting import Counting
from server.metrics import Children, Metrics


def series(metrics: Metrics, name: str) -> set[str]:
    """The labels under which a metric has counted."""
    return set(re.findall(rf"(?m)^{name}_total(\{{.*\}}) ", metrics.exposition().decode()))


def test_a_series_is_looked_up_once_and_is_the_metrics_own(monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = Metrics()
    images = Children(metrics.images)
    images["nuclei", "1"].inc()
    assert images["nuclei", "1"] is metrics.images.labels("nuclei", "1")
    monkeypatch.setattr(metrics.images, "labels", None)
    images["nuclei", "1"].inc()
    assert b'seg_images_total{model="nuclei",version="1"} 2.0' in metrics.exposition()


def test_only_what_happened_has_a_series() -> None:
    metrics = Metrics()
    counting = Counting(metrics)
    refused = Record("a", model="nuclei", version="1", status=503, failed=["overloaded"])
    gone = Record("b", model="nuclei", version="1", status=CLIENT_GONE)
    counting.count(refused)
    assert refused.stages.seconds.keys() == {"receive"}  # closed
    assert series(metrics, "seg_images") == series(metrics, "seg_cancelled") == set()
    assert series(metrics, "seg_rejected") == {'{model="nuclei",reason="overloaded",version="1"}'}
    counting.count(gone)
    assert series(metrics, "seg_cancelled") == {'{model="nuclei",stage="receive",version="1"}'}
    answered = Record("c", model="nuclei", version="1", status=200, images=[Picture((40, 60), 3, 1)] * 2)
    counting.count(answered)
    counting.count(answered)
    assert b'seg_images_total{model="nuclei",version="1"} 4.0' in metrics.exposition()
    assert b'seg_instances_sum{model="nuclei",version="1"} 12.0' in metrics.exposition()
    assert b'seg_image_pixels_sum{model="nuclei",version="1"} 9600.0' in metrics.exposition()
