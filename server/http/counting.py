"""What the metrics are told of a request that is over."""

from __future__ import annotations

from server.http.access import CLIENT_GONE, Record
from server.metrics import REJECTIONS, Children, Metrics


class Counting:
    """Counts segmentation requests."""

    def __init__(self, metrics: Metrics) -> None:
        self._requests = Children(metrics.requests)
        self._cancelled = Children(metrics.cancelled)
        self._failures = Children(metrics.failures)
        self._rejected = Children(metrics.rejected)
        self._request_seconds = Children(metrics.request_seconds)
        self._stage_seconds = Children(metrics.stage_seconds)
        self._response_bytes = Children(metrics.response_bytes)
        self._images = Children(metrics.images)
        self._image_pixels = Children(metrics.image_pixels)
        self._instances = Children(metrics.instances)

    def count(self, record: Record) -> None:
        """Close the stages of a request, and count it under its model; under none where it named none of ours."""
        key = record.model, record.version
        self._requests[*key, str(record.status)].inc()
        if record.status == CLIENT_GONE:
            self._cancelled[*key, record.stages.current].inc()
        for code in record.failed:
            self._failures[*key, code].inc()
            if code in REJECTIONS:
                self._rejected[*key, code].inc()
        self._request_seconds[key].observe(record.stages.close())
        for stage, seconds in record.stages.seconds.items():
            self._stage_seconds[*key, stage].observe(seconds)
        self._response_bytes[key].observe(record.response_bytes)
        for picture in record.images:
            self._images[key].inc()
            self._image_pixels[key].observe(picture.size[0] * picture.size[1])
            self._instances[key].observe(picture.instances)
