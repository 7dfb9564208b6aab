"""A Mask R-CNN without plugins: the same numbers, with every operator that a stock TensorRT lacks replaced.

deform_conv2d      sampled_deform_conv2d
nms_keep           ClusterNMS
best_of_classes    BestPairs
PyramidPool        AtlasPool
"""

from __future__ import annotations

from dataclasses import replace

from models.blocks.atlas_roi_align import atlas_pool
from models.blocks.class_nms import BestPairs
from models.blocks.cluster_nms import ClusterNMS
from models.blocks.mask_rcnn_spec import MaskRCNNSpec
from models.blocks.pyramid_pool import Pool, PyramidPool
from models.blocks.resnet import ResNetSpec
from models.blocks.sampled_deform_conv import sampled_deform_conv2d


def plugin_free(spec: MaskRCNNSpec, largest: tuple[int, int], nms: ClusterNMS) -> MaskRCNNSpec:
    """
    Args:
        spec: of the model as it was trained.
        largest: (height, width) of the largest input, pixels.
    """
    return replace(
        spec,
        backbone=_convolving(spec.backbone),
        shared_stage=spec.shared_stage and _convolving(spec.shared_stage),
        rpn=replace(spec.rpn, nms=nms),
        detection=replace(spec.detection, nms=BestPairs(nms)),
        pool=_pooling(spec.pool, largest),
        mask_pool=_pooling(spec.mask_pool, largest),
    )


def _convolving(resnet: ResNetSpec) -> ResNetSpec:
    return replace(resnet, deformable=replace(resnet.deformable, operator=sampled_deform_conv2d))


def _pooling(pool: Pool, largest: tuple[int, int]) -> Pool:
    return atlas_pool(pool, largest) if isinstance(pool, PyramidPool) else pool
