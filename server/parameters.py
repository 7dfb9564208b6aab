"""The query parameters of a segmentation request. Unknown, repeated or out-of-range ones are refused, never ignored."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from server.errors import BadParameter
from server.manifest import ClassName
from server.priority import PRIORITIES

MAY_REPEAT = {"classes"}


class Parameters(BaseModel):
    """What a caller may ask."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    score_threshold: float | None = Field(
        None,
        ge=0.0,
        le=1.0,
        allow_inf_nan=False,
        description="lowest score to answer; the model's default if not given",
    )
    max_instances: int | None = Field(
        None, ge=1, le=100_000, description='answer at most so many, best first; says "truncated": true when it cuts'
    )
    classes: list[str] | None = Field(
        None, min_length=1, description="names or ids, comma list, may repeat; only these classes are answered"
    )
    masks: Literal["rle", "rle_counts", "polygons", "png", "none"] = Field(
        "rle",
        description="compressed COCO run lengths, the same as plain numbers, outlines with holes, "
        "one label map for the image, or no masks",
    )
    priority: int | None = Field(
        None,
        ge=0,
        le=PRIORITIES - 1,
        description="higher goes first in the queue, and is not refused for who waits behind it; "
        "only for keys that hold 'priority'",
    )
    timeout_ms: float | None = Field(
        None, gt=0, le=600_000, allow_inf_nan=False, description="give up with 504 after so many milliseconds"
    )


def parse_parameters(items: Iterable[tuple[str, str]]) -> Parameters:
    """
    Args:
        items: the query string's pairs, in order, percent-decoded.

    Raises:
        BadParameter: names the parameter and what is allowed.
    """
    values: dict[str, str | list[str]] = {}
    for name, text in items:
        if name in MAY_REPEAT:
            listed = values.setdefault(name, [])
            assert isinstance(listed, list)
            listed += [part.strip() for part in text.split(",")]
        elif name in values:
            raise BadParameter(f"'{name}' is given twice; give it once")
        else:
            values[name] = text
    try:
        return Parameters.model_validate(values)
    except ValidationError as error:
        raise BadParameter(_explain(error)) from None


def chosen_labels(wanted: Sequence[str] | None, classes: Sequence[ClassName]) -> set[int] | None:
    """Labels of the classes asked for, by name or id; None for all.

    Raises:
        BadParameter: the model has no such class.
    """
    if wanted is None:
        return None
    by_text = {str(entry.id): label for label, entry in enumerate(classes)}
    by_text |= {entry.name: label for label, entry in enumerate(classes)}  # a name wins over an id that looks like it
    labels = set()
    for text in wanted:
        if text not in by_text:
            known = ", ".join(entry.name for entry in classes[:20]) + (", ..." if len(classes) > 20 else "")
            raise BadParameter(f"'classes' has '{text[:80]}', which this model does not know; it knows {known}")
        labels.add(by_text[text])
    return labels


def _explain(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    name = str(first["loc"][0])[:80]
    if first["type"] == "extra_forbidden":
        return f"'{name}' is not a parameter here; known are {', '.join(Parameters.model_fields)}"
    given = str(first["input"])[:80]
    return f"'{name}' is '{given}': {_allowed(name)}"


def _allowed(name: str) -> str:
    """The range of a parameter in words, from its own declaration."""
    schema = Parameters.model_json_schema()["properties"][name]
    options = next(option for option in schema.get("anyOf", [schema]) if option.get("type") != "null")
    if "enum" in options:
        return f"allowed are {', '.join(options['enum'])}"
    low = options.get("minimum", options.get("exclusiveMinimum"))
    high = options.get("maximum", options.get("exclusiveMaximum"))
    if low is None:
        return "a comma list of names or ids is wanted"
    above = "above " if "exclusiveMinimum" in options else ""
    noun = "a whole number" if options["type"] == "integer" else "a number"
    return f"{noun} from {above}{low} to {high} is wanted"
