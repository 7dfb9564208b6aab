"""Mask representations, one file each; `AnyMasks` is what a manifest may say under `masks`.

To add one: write the file, add its class to the union.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from server.masks.base import Masks, Outputs, bind
from server.masks.center_offsets import CenterOffsetMasks
from server.masks.prototypes import PrototypeMasks
from server.masks.roi import RoiMasks

AnyMasks = Annotated[CenterOffsetMasks | PrototypeMasks | RoiMasks, Field(discriminator="kind")]

__all__ = ["AnyMasks", "CenterOffsetMasks", "Masks", "Outputs", "PrototypeMasks", "RoiMasks", "bind"]
