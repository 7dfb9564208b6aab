"""One group of cases through every stage of ours, from the state dict to masks in original pixels.

    weights         every key of the reference's state dict finds its place
    network input   our uint8 head (or, where the reference resizes floats, its own arithmetic) against the reference's
    before RoI      pyramid, RPN logits and deltas, in eager PyTorch
    proposals       as a set
    after RoI       class logits, box deltas and mask logits, for the reference's own boxes: rows have no stable order
    eager           detections and masks, decoded as the server does
    graph           the same from ONNX Runtime, at batch 1 and 3; rows of a batch equal their picture alone
    twin            eager and graph again, without plugins, and whether cluster-NMS was exact
    served          from the original picture through the server's own resizing, in bytes

Rows of one batch (c1 and c2) run together at the shape they were padded to, and each alone at that shape.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from export.conform.cases import Group
from export.conform.conventions import masks_said
from export.conform.headless import NETWORK_INPUT, without_head
from export.conform.matching import (
    ABSOLUTE_AFTER_ROI,
    ABSOLUTE_BEFORE_ROI,
    MASK_IOU_MEAN,
    SCORE,
    Detections,
    Difference,
    agree,
    differ,
    match,
)
from export.conform.served import served_rows
from export.conform.systems import System, input_rule
from export.conform.table import Row, verdict
from export.conform.view import View, answers, decode, pyramid, resized_floats, see, sizes_of
from export.graph import write_graph
from export.laws import check_plugin_free
from export.source import Exportable
from models.blocks.cluster_nms import ClusterNMS
from models.blocks.top import UNUSED
from models.blocks.watch import Counting
from models.mask_rcnn import MaskRCNN
from models.weights import load_into
from server.bundle_files import MODEL_FILE, TWIN_FILE
from server.engines import Engine, Tensors, load_engine
from server.preprocess import FixedInput

PROPOSALS = 0.98  # share that is the same set: a decision of NMS may hang on the last bit
MISSING = Difference(np.inf, np.inf)


def compare(system: System, group: Group, folder: Path) -> Iterator[Row]:
    """Every stage of a group.

    Args:
        folder: where the graph may be written.
    """
    model, views = build(system, group)
    yield Row(group.system, group.name, "weights", f"{len(model.state_dict())} tensors, none left over", "pass")
    yield from eager_rows(system, model, views)
    yield from graph_rows(system, model, views, folder)
    yield from twin_rows(system, model, views, folder)


def build(system: System, group: Group) -> tuple[MaskRCNN, list[View]]:
    """The model of a group with the reference's weights, and its pictures.

    Raises:
        ExportError, WeightsError: the case is incomplete; a key is missing, unexpected or of another shape.
    """
    case = group.cases[0]
    spec = system.spec(case)
    views = [see(system, case, spec.multiple) for case in group.cases]
    size = views[0].frame.input_size
    free = input_rule(system, case, spec.multiple)
    fixed = FixedInput(size=size, resize="letterbox")
    fits = all(
        side % spec.multiple == 0 and side <= max(free.max_size) for side in size
    )  # a shape that free axes can have
    names = tuple(f"class {number}" for number in range(spec.detection.classes))
    model = MaskRCNN(spec, names, free if fits else fixed).eval()
    load_into(model, case.state(), system.names, system.ignored)
    return model, views


def eager_rows(system: System, model: MaskRCNN, views: list[View]) -> Iterator[Row]:
    """What PyTorch makes of the pictures, together in their batch, and where there are several, each alone."""
    with torch.inference_mode():
        inputs = [network_input(system, model, view) for view in views]
        x, sizes = torch.cat(inputs), torch.from_numpy(sizes_of(views))
        raw = model.raw(x, sizes)
        for row, view in enumerate(views):
            ours = resized_floats(view, model.spec.colours) if system.resizes_in_float else inputs[row]
            yield from _input_row(view, ours)
            yield from _before_roi(view, raw, row)
            yield from _proposals(system, view, raw, row)
            yield from _after_roi(model, view, raw, row)
        yield from _answers(model, views, answers(model, raw, sizes), "eager")
        if len(views) > 1:
            for row, view in enumerate(views):
                alone = model.raw(inputs[row], sizes[row : row + 1])
                yield from _answers(model, [view], answers(model, alone, sizes[row : row + 1]), "eager, alone")


def graph_rows(system: System, model: MaskRCNN, views: list[View], folder: Path) -> Iterator[Row]:
    """The exported graph in the server's engine; strictly, then the way a picture takes in the server."""
    path = folder / MODEL_FILE
    write_graph(cast(Exportable, model), path)
    yield from _strict_rows(system, model, views, path, "graph")
    if any(view.original is not None for view in views):
        engine = load_engine(path, threads=1)
        try:
            for view in views:
                yield from served_rows(system, model, engine, view)
        finally:
            engine.close()


def twin_rows(system: System, model: MaskRCNN, views: list[View], folder: Path) -> Iterator[Row]:
    """The same network without plugins, in PyTorch and as the graph for TensorRT."""
    case, residue, path = views[0].case, Counting(), folder / TWIN_FILE
    watched = model.plugin_free(ClusterNMS(watch=residue))
    with torch.inference_mode():
        x, sizes = torch.cat([network_input(system, model, view) for view in views]), torch.from_numpy(sizes_of(views))
        yield from _answers(watched, views, answers(watched, watched.raw(x, sizes), sizes), "twin, eager")
    said = f"{residue.changed} undecided, {residue.missed} left out"
    yield Row(case.system, case.name, "twin, residue", said, verdict(not residue.changed and not residue.missed))
    twin = model.plugin_free(ClusterNMS())
    write_graph(cast(Exportable, twin), path)
    check_plugin_free(path)
    yield from _strict_rows(system, twin, views, path, "twin")


def _strict_rows(system: System, model: MaskRCNN, views: list[View], path: Path, name: str) -> Iterator[Row]:
    """What a graph makes of the network's own input: each picture alone, and in a batch of three."""
    strict = without_head(path, path.with_name(f"headless.{path.name}")) if system.resizes_in_float else path
    company = [views[0].mirrored()] if len(views) == 1 else []
    three = [*views, *company, views[0]]
    with torch.inference_mode():
        inputs = [network_input(system, model, view).numpy() for view in three]
    engine = load_engine(strict, threads=1)
    try:
        alone = [_run(engine, [view], [given]) for view, given in zip(three, inputs, strict=True)]
        for view, outputs in list(zip(three, alone, strict=True))[: len(views)]:
            yield from _answers(model, [view], outputs, f"{name}, alone")
        outputs = _run(engine, three, inputs)
    finally:
        engine.close()
    yield from _answers(model, three, outputs, f"{name}, row {{}} of 3")
    apart = max(_apart(outputs[key][row], alone[row][key][0]) for row in range(3) for key in outputs)
    case = views[0].case
    yield Row(case.system, case.name, f"{name}, rows equal alone", f"{apart:g}", verdict(apart == 0.0))


def network_input(system: System, model: MaskRCNN, view: View) -> Tensor:
    """(1, 3, h, w): what the reference fed its backbone, recorded where its arithmetic is not ours."""
    if system.resizes_in_float:
        recorded = view.raw.get("network_input")
        return resized_floats(view, model.spec.colours) if recorded is None else torch.from_numpy(recorded)
    found: Tensor = model.normalise(torch.from_numpy(view.placed()[None]), torch.from_numpy(sizes_of([view])))
    return found


def _input_row(view: View, found: Tensor) -> Iterator[Row]:
    for name, step in (("network_input", 1), ("network_input_s2", 2)):
        if name in view.raw:
            result = differ(found.numpy()[..., ::step, ::step], view.raw[name], ABSOLUTE_BEFORE_ROI)
            yield _row(view, "network input", result, name)


def _before_roi(view: View, raw: Mapping[str, Tensor], row: int) -> Iterator[Row]:
    results = {
        name: differ(raw[name][row : row + 1].numpy(), tensor, ABSOLUTE_BEFORE_ROI) if name in raw else MISSING
        for name, tensor in view.raw.items()
        if name.startswith(("features.", "rpn_"))
    }
    yield from _worst(view, "before RoI", results)


def _proposals(system: System, view: View, raw: Mapping[str, Tensor], row: int) -> Iterator[Row]:
    """As a set: boxes that overlap by more than 0.99, and their scores."""
    if "proposals" not in view.raw:
        return
    logits = raw["proposal_logits"][row]
    used = logits > UNUSED / 2
    found, wanted = raw["proposals"][row][used].numpy(), view.raw["proposals"]
    scores, ours = view.raw.get("proposal_scores"), logits[used]
    if scores is None:
        wanted_scores, found_scores = np.zeros(len(wanted)), np.zeros(len(found))
    else:  # saturated probabilities have forgotten their logits
        ours = ours.sigmoid() if system.proposal_scores == "probabilities" else ours
        wanted_scores, found_scores = scores.astype(np.float64), ours.numpy().astype(np.float64)
    result = match(
        _boxes_only(wanted, wanted_scores),
        _boxes_only(found, found_scores),
        score=SCORE * max(1.0, float(np.std(wanted_scores))),
    )
    said = f"{len(result.pairs)} of {len(wanted)}, {len(found)} found, score {result.score_error:.1e}"
    yield Row(view.case.system, view.case.name, "proposals", said, verdict(result.share >= PROPOSALS))


def _boxes_only(boxes: NDArray[np.floating], scores: NDArray[np.float64]) -> Detections:
    labels, masks = np.zeros(len(boxes), np.int64), np.zeros((0, 0, 0), np.bool_)
    return Detections(boxes.astype(np.float64), scores, labels, masks)


def _after_roi(model: MaskRCNN, view: View, raw: Mapping[str, Tensor], row: int) -> Iterator[Row]:
    """Both heads on the reference's own boxes."""
    features = [level[row : row + 1] for level in pyramid(raw)]
    results: dict[str, Difference] = {}
    if "proposals" in view.raw:
        boxes = torch.from_numpy(view.raw["proposals"])
        logits, deltas = model.box_stage(features, boxes[None])
        for name, tensor in (("class_logits", logits), ("box_deltas", deltas)):
            if name in view.raw:
                results[name] = differ(tensor.numpy(), view.raw[name], ABSOLUTE_AFTER_ROI)
    results |= _masks_after_roi(model, view, features)
    yield from _worst(view, "after RoI", results)


def _masks_after_roi(model: MaskRCNN, view: View, features: list[Tensor]) -> dict[str, Difference]:
    names = {"mask_logits", "mask_probabilities"} & set(view.raw)
    if not names or view.wanted is None:
        return {}
    boxes = view.raw.get("mask_boxes")
    if boxes is None:  # not recorded: the final ones, back in the network's frame
        boxes = view.frame.to_input(view.wanted.boxes).astype(np.float32)
    labels = view.raw.get("mask_labels", view.wanted.labels)
    logits = model.mask_stage(features, torch.from_numpy(boxes)[None])  # (D, C', m, m)
    results = {}
    if "mask_logits" in names:
        results["mask_logits"] = differ(logits.numpy(), view.raw["mask_logits"], ABSOLUTE_AFTER_ROI)
    if "mask_probabilities" in names:
        planes = torch.from_numpy(labels.astype(np.int64)) + (logits.shape[1] - model.spec.detection.classes)
        planes = planes.clamp(0, logits.shape[1] - 1)
        own = logits[torch.arange(len(logits)), planes][:, None].sigmoid()  # (D, 1, m, m)
        results["mask_probabilities"] = differ(own.numpy(), view.raw["mask_probabilities"], ABSOLUTE_AFTER_ROI)
    return results


def _answers(model: MaskRCNN, views: Sequence[View], outputs: Tensors, stage: str) -> Iterator[Row]:
    """Detections as sets, then the masks of partners."""
    for row, view in enumerate(views):
        if view.wanted is None:
            continue
        found = decode(model.masks, outputs, row, view.frame)
        result = match(view.wanted, found)
        masks = agree(view.wanted.masks, found.masks, result.pairs)
        said = f"{len(result.pairs)} of {len(view.wanted.scores)}, score {result.score_error:.1e}; {masks_said(masks)}"
        passes = result.share == 1.0 and masks.mean >= MASK_IOU_MEAN and not masks.bad
        yield Row(view.case.system, view.case.name, stage.format(row + 1), said, verdict(passes))


def _run(engine: Engine, views: Sequence[View], inputs: Sequence[NDArray[np.float32]]) -> Tensors:
    return engine.run(
        {
            "images": np.stack([view.placed() for view in views]),
            "sizes": sizes_of(views),
            NETWORK_INPUT: np.concatenate(inputs),
        }
    )


def _worst(view: View, stage: str, results: Mapping[str, Difference]) -> Iterator[Row]:
    if results:
        name = max(results, key=lambda one: results[one].of_tolerance)
        yield _row(view, stage, results[name], name)


def _row(view: View, stage: str, result: Difference, name: str) -> Row:
    said = f"{result.of_std:.1e} std at {name}"
    return Row(view.case.system, view.case.name, stage, said, verdict(result.of_tolerance <= 1))


def _apart(found: NDArray[Any], wanted: NDArray[Any]) -> float:
    return float(np.abs(found.astype(np.float64) - wanted).max(initial=0.0))
