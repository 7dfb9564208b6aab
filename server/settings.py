"""Every setting of the server: a flag (`--max-wait-ms`) and a variable (`MASKSERVE_MAX_WAIT_MS`), declared once.

`Settings` stops at `create_app`: inside, values are handed over one by one.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """Serve segmentation bundles over HTTP: POST an image to /v1/segment, get COCO run-length masks.

    Every flag is also a variable: --max-wait-ms is MASKSERVE_MAX_WAIT_MS. A flag wins over its variable.
    """

    model_config = SettingsConfigDict(
        env_prefix="MASKSERVE_",
        cli_prog_name="python -m server",
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_hide_none_type=True,
        cli_avoid_json=True,
        extra="forbid",
        frozen=True,
    )

    bundles: Path = Field(Path("bundles"), description="folder of bundles, <model>/<version>/manifest.json")
    default_model: str | None = Field(None, description="what /v1/segment means when several models are loaded")
    host: str = Field("127.0.0.1", description="address to bind; 0.0.0.0 lets other machines in")
    port: int = Field(8000, ge=0, le=65535, description="port to bind; 0 picks a free one")
    workers: Literal["auto"] | Annotated[int, Field(ge=1, le=64)] = Field(
        "auto",
        description="processes that answer HTTP; 1 is one process in all. auto: one per core up to 4, then one for "
        "two; half of the cores with a GPU; fewer where memory is short. Lower it to save memory",
    )
    engines: Literal["auto", "each", "shared"] = Field(
        "auto",
        description="with several workers: each has engines of its own, or all share those of one more process, where "
        "batches form over all of them. auto: shared with a GPU, else each",
    )
    shared_mb: float = Field(
        512.0,
        gt=0,
        description="with shared engines: megabytes of shared memory for pictures that wait, and as many for answers, "
        "at most, for each front; only what is used is taken. A full one gives 503. Raise it for large inputs",
    )
    engine: Literal["auto", "onnxruntime", "cuda", "tensorrt"] = Field(
        "auto",
        description="runtime: ONNX Runtime on the CPU (onnxruntime) or on a GPU (cuda), TensorRT with the bundle's "
        "model.plan. auto: the best that runs here; /v1/models says which, and why no better. Name one to have that or "
        "nothing",
    )
    cuda_graphs: int = Field(
        0,
        ge=0,
        le=64,
        description="with --engine cuda: input shapes, the first that come, whose runs each stream records as CUDA "
        "graphs. Try it with a few fixed shapes and small batches; each shape keeps its memory",
    )
    threads: Annotated[int, Field(ge=0)] = Field(
        0, description="cores for the engine and the codecs; 0 takes what the container grants. Turn it when sharing"
    )
    max_batch: int | None = Field(
        None,
        ge=1,
        description="images per engine run, at most the bundle's. Lower it for latency, or when memory is short",
    )
    max_batch_megapixels: float = Field(
        1.1,
        gt=0,
        description="input megapixels per engine run; bounds memory and wait, raise it on a GPU. One image always fits",
    )
    batch_delay_ms: float = Field(
        0.0,
        ge=0,
        le=1000,
        description="milliseconds an image waits on purpose for others to share its run with. Hardly ever worth it",
    )
    max_wait_ms: float = Field(
        500.0, gt=0, description="predicted wait in the queue, milliseconds, above which a request is refused with 503"
    )
    queue_limit: int = Field(
        64,
        ge=1,
        description="requests inside at once (reading, decoding, waiting, running); more get 503. Bounds memory",
    )
    engine_timeout_s: float = Field(
        60.0,
        gt=0,
        description="seconds after which an engine run is taken to hang: its requests get 504, its process ends, to "
        "be started again. Raise it for a model whose largest batch takes longer",
    )
    max_body_mb: float = Field(32.0, gt=0, description="request body, megabytes (10^6 bytes); more gets 413")
    max_images: int = Field(16, ge=1, le=1000, description="images in one request; more get 413")
    max_megapixels: float = Field(50.0, gt=0, description="image size, megapixels; more gets 413 before decoding")
    max_response_mb: float = Field(64.0, gt=0, description="answer, megabytes (10^6 bytes); above it instances are cut")
    keys: Path | None = Field(None, description="JSON file of keys that callers need; without it everybody may ask")
    header_timeout_s: float = Field(10.0, gt=0, description="seconds for a client to send its headers, else 408")
    body_timeout_s: float = Field(30.0, gt=0, description="seconds for a client to send its body, else 408")
    keep_alive_s: int = Field(15, ge=1, description="seconds an idle connection is kept")
    drain_s: int = Field(30, ge=1, description="seconds that SIGTERM gives to requests already accepted")
    log_format: Literal["auto", "json", "text"] = Field(
        "auto", description="lines on stderr: text for people, JSON for machines; auto is text in a terminal, else JSON"
    )
    log_level: Literal["info", "warning", "error"] = Field(
        "info", description="least level of a line on stderr; failed requests are warnings, bugs are errors"
    )
    log_sample: float | None = Field(
        None,
        ge=0,
        le=1,
        description="share of successes and of 503s that get a line, 0 to 1; failures and requests over 1 s always do. "
        "All in text, 0.01 in JSON: the metrics count every request. Raise it when requests are few, or hunted",
    )

    @property
    def log_style(self) -> Literal["json", "text"]:
        """`log_format`, decided."""
        if self.log_format == "auto":
            return "text" if sys.stderr.isatty() else "json"
        return self.log_format

    @property
    def log_share(self) -> float:
        """`log_sample`, decided.

        Who reads text sits before a server that they try out, and wants to see that something happened. JSON is kept:
        at 300 requests a second, all of them are 11 GB a day, and 1 in 100 still shows how they are spread.
        """
        if self.log_sample is None:
            return 1.0 if self.log_style == "text" else 0.01
        return self.log_sample
