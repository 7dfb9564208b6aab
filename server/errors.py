"""Everything that can go wrong, as one tree; each leaf carries the HTTP `status` and the `code` clients switch on.

    MaskServeError
    ├── RequestError            the caller can fix it
    │   ├── BadRequest          400 bad_request
    │   ├── BadImage            400 bad_image
    │   ├── TruncatedImage      400 truncated_image
    │   ├── Unauthorized        401 unauthorized
    │   ├── Forbidden           403 forbidden
    │   ├── UnknownModel        404 unknown_model
    │   ├── UnknownVersion      404 unknown_version
    │   ├── NotFound            404 not_found
    │   ├── MethodNotAllowed    405 method_not_allowed
    │   ├── RequestTimeout      408 request_timeout
    │   ├── BodyTooLarge        413 body_too_large
    │   ├── ImageTooLarge       413 image_too_large
    │   ├── TooManyImages       413 too_many_images
    │   ├── UnsupportedMedia    415 unsupported_media
    │   ├── BadParameter        422 bad_parameter
    │   └── RateLimited         429 rate_limited, with Retry-After
    ├── ServiceError            the caller can try again
    │   ├── EngineFailed        500 engine_failed
    │   ├── ModelOutputInvalid  500 model_output_invalid
    │   ├── Internal            500 internal
    │   ├── Overloaded          503 overloaded, with Retry-After
    │   ├── NotReady            503 not_ready, with Retry-After
    │   ├── Draining            503 draining, with Retry-After
    │   └── DeadlineExceeded    504 deadline_exceeded
    ├── StartupError            the operator can fix it
    │   ├── BadManifest
    │   ├── ShapeMismatch
    │   ├── HashMismatch
    │   ├── GoldenMismatch
    │   ├── UnsupportedModelFile
    │   ├── NoEngine
    │   ├── BadAddress
    │   └── BadKeys
    └── EngineError             between an engine and whoever runs it; no caller sees it
        ├── DeviceFault         only a new process cures it
        ├── DeviceFull          a smaller batch may fit
        └── ShapeRefused        this engine does not take this batch

A message says what, what was expected, what came, what to do next. It reaches the client as it is, so it never holds a
path, an address or the text of a library.
"""

from __future__ import annotations

from typing import ClassVar


class MaskServeError(Exception):
    """Root of the tree."""


class RequestError(MaskServeError):
    """The caller can fix it."""

    status: ClassVar[int] = 400
    code: ClassVar[str] = "bad_request"


class BadRequest(RequestError):
    """The request itself is malformed."""


class BadImage(RequestError):
    """The bytes cannot be read as a picture."""

    code = "bad_image"


class TruncatedImage(RequestError):
    """The picture ends too early; it is never half-answered."""

    code = "truncated_image"


class Unauthorized(RequestError):
    """Keys are configured, and this request has none or a wrong one."""

    status, code = 401, "unauthorized"


class Forbidden(RequestError):
    """The key is good, but not for this."""

    status, code = 403, "forbidden"


class RateLimited(RequestError):
    """This caller's quota is used up.

    Args:
        retry_after_s: seconds until the quota holds one request again.
    """

    status, code = 429, "rate_limited"

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class UnknownModel(RequestError):
    status, code = 404, "unknown_model"


class UnknownVersion(RequestError):
    status, code = 404, "unknown_version"


class NotFound(RequestError):
    status, code = 404, "not_found"


class MethodNotAllowed(RequestError):
    """`allow` is the value of the `Allow` header."""

    status, code = 405, "method_not_allowed"

    def __init__(self, message: str, allow: str) -> None:
        super().__init__(message)
        self.allow = allow


class RequestTimeout(RequestError):
    """Headers or body came too slowly."""

    status, code = 408, "request_timeout"


class BodyTooLarge(RequestError):
    status, code = 413, "body_too_large"


class ImageTooLarge(RequestError):
    """More pixels than the limit; told from the header, before decoding."""

    status, code = 413, "image_too_large"


class TooManyImages(RequestError):
    status, code = 413, "too_many_images"


class UnsupportedMedia(RequestError):
    """A format or pixel type outside the list."""

    status, code = 415, "unsupported_media"


class BadParameter(RequestError):
    """A query parameter is unknown or out of its range."""

    status, code = 422, "bad_parameter"


class ServiceError(MaskServeError):
    """Not the caller's fault; the same request may succeed later.

    Args:
        retry_after_s: predicted seconds until this request would be admitted, where that makes sense.
    """

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal"

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Internal(ServiceError):
    """A bug of ours."""


class EngineFailed(ServiceError):
    code = "engine_failed"


class ModelOutputInvalid(ServiceError):
    """The network answered NaN, infinity or the wrong shapes for this picture."""

    code = "model_output_invalid"


class Overloaded(ServiceError):
    status, code = 503, "overloaded"


class NotReady(ServiceError):
    status, code = 503, "not_ready"


class Draining(ServiceError):
    """The server is shutting down."""

    status, code = 503, "draining"


class DeadlineExceeded(ServiceError):
    """The caller's `timeout_ms` passed, or cannot be met any more."""

    status, code = 504, "deadline_exceeded"


class StartupError(MaskServeError):
    """A bundle or a setting is wrong; the operator can fix it."""


class BadManifest(StartupError):
    pass


class ShapeMismatch(StartupError):
    """A tensor has another shape than its legend says."""


class HashMismatch(StartupError):
    """A file differs from the sha256 in the manifest."""


class GoldenMismatch(StartupError):
    """The engine does not reproduce the bundle's golden sample."""


class BadAddress(StartupError):
    """The server cannot listen there."""


class BadKeys(StartupError):
    """The file of keys cannot be used."""


class UnsupportedModelFile(StartupError):
    """No runtime here can open the model file."""


class NoEngine(StartupError):
    """The wanted engine cannot run here, or not this bundle. The message holds no path: `/v1/models` shows it."""


class EngineError(MaskServeError):
    """What an engine tells whoever runs it."""


class DeviceFault(EngineError):
    """The device or its driver failed: nothing that this process asks of it can be trusted any more.

    The message names the call and the code, and holds no text of a library: `/readyz` shows it.
    """


class DeviceFull(EngineError):
    """No memory on the device for what was asked; less may fit."""


class ShapeRefused(EngineError):
    """The engine was not made for a batch of this shape; the device has not seen it."""
