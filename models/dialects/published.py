"""Configurations of the models that each code base published, at full size, for any number of classes.

Only what `spec` reads is written down, under the code base's own names.
"""

from __future__ import annotations

from typing import Any


def torchvision(classes: int) -> dict[str, Any]:
    """`maskrcnn_resnet50_fpn`, and v2 by `spec_v2`: torchvision/models/detection/{mask_rcnn,faster_rcnn,rpn}.py."""
    return {
        "base_width": 64,
        "layers": [3, 4, 6, 3],
        "fpn_ch": 256,
        "box_head_hidden": 1024,
        "num_classes": classes + 1,
        "anchor_sizes": [32, 64, 128, 256, 512],
        "aspect": [0.5, 1.0, 2.0],
        "rpn_pre_nms": 1000,
        "rpn_post_nms": 1000,
        "rpn_nms": 0.7,
        "box_score_thresh": 0.05,
        "box_nms": 0.5,
        "dets_per_img": 100,
    }


def torchvision_coco_v1(classes: int) -> dict[str, Any]:
    """As above; torchvision takes the epsilon out of every batch norm after it has loaded its own first weights, which
    were trained without."""
    return torchvision(classes) | {"norm_eps": 0.0}


def tiny(classes: int) -> dict[str, Any]:
    """torchvision's, too small to learn anything."""
    return torchvision(classes) | {
        "base_width": 4,
        "layers": [1, 1, 1, 1],
        "fpn_ch": 8,
        "box_head_hidden": 16,
        "anchor_sizes": [16, 24, 48, 96, 160],
        "rpn_pre_nms": 40,
        "rpn_post_nms": 30,
        "dets_per_img": 10,
    }


def detectron2_fpn(classes: int) -> dict[str, Any]:
    """COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x."""
    return {
        "MODEL": {
            "PIXEL_MEAN": [103.53, 116.28, 123.675],
            "PIXEL_STD": [1.0, 1.0, 1.0],
            "BACKBONE": {"NAME": "build_resnet_fpn_backbone"},
            "RESNETS": {
                "DEPTH": 50,
                "NORM": "FrozenBN",
                "NUM_GROUPS": 1,
                "WIDTH_PER_GROUP": 64,
                "STEM_OUT_CHANNELS": 64,
                "RES2_OUT_CHANNELS": 256,
                "RES5_DILATION": 1,
                "STRIDE_IN_1X1": True,
                "OUT_FEATURES": ["res2", "res3", "res4", "res5"],
                "DEFORM_ON_PER_STAGE": [False] * 4,
                "DEFORM_MODULATED": False,
                "DEFORM_NUM_GROUPS": 1,
            },
            "FPN": {"OUT_CHANNELS": 256, "NORM": ""},
            "ANCHOR_GENERATOR": {
                "SIZES": [[32], [64], [128], [256], [512]],
                "ASPECT_RATIOS": [[0.5, 1.0, 2.0]],
            },
            "PROPOSAL_GENERATOR": {"MIN_SIZE": 0},
            "RPN": {
                "IN_FEATURES": ["p2", "p3", "p4", "p5", "p6"],
                "CONV_DIMS": [-1],
                "BBOX_REG_WEIGHTS": [1.0, 1.0, 1.0, 1.0],
                "PRE_NMS_TOPK_TEST": 1000,
                "POST_NMS_TOPK_TEST": 1000,
                "NMS_THRESH": 0.7,
            },
            "ROI_HEADS": {
                "NAME": "StandardROIHeads",
                "IN_FEATURES": ["p2", "p3", "p4", "p5"],
                "NUM_CLASSES": classes,
                "SCORE_THRESH_TEST": 0.05,
                "NMS_THRESH_TEST": 0.5,
            },
            "ROI_BOX_HEAD": {
                "NUM_CONV": 0,
                "CONV_DIM": 256,
                "NUM_FC": 2,
                "FC_DIM": 1024,
                "NORM": "",
                "CLS_AGNOSTIC_BBOX_REG": False,
                "BBOX_REG_WEIGHTS": [10.0, 10.0, 5.0, 5.0],
                "POOLER_TYPE": "ROIAlignV2",
                "POOLER_RESOLUTION": 7,
                "POOLER_SAMPLING_RATIO": 0,
            },
            "ROI_MASK_HEAD": {
                "NUM_CONV": 4,
                "CONV_DIM": 256,
                "NORM": "",
                "CLS_AGNOSTIC_MASK": False,
                "POOLER_TYPE": "ROIAlignV2",
                "POOLER_RESOLUTION": 14,
                "POOLER_SAMPLING_RATIO": 0,
            },
        },
        "TEST": {"DETECTIONS_PER_IMAGE": 100},
    }


def detectron2_c4(classes: int) -> dict[str, Any]:
    """COCO-InstanceSegmentation/mask_rcnn_R_50_C4_3x."""
    config = detectron2_fpn(classes)
    model = config["MODEL"]
    model["BACKBONE"]["NAME"] = "build_resnet_backbone"
    model["RESNETS"]["OUT_FEATURES"] = ["res4"]
    model["ANCHOR_GENERATOR"]["SIZES"] = [[32, 64, 128, 256, 512]]
    model["RPN"] |= {"IN_FEATURES": ["res4"], "PRE_NMS_TOPK_TEST": 6000}
    model["ROI_HEADS"] |= {"NAME": "Res5ROIHeads", "IN_FEATURES": ["res4"]}
    model["ROI_BOX_HEAD"] |= {"NUM_FC": 0, "POOLER_RESOLUTION": 14}
    model["ROI_MASK_HEAD"]["NUM_CONV"] = 0
    return config


def detectron2_dc5(classes: int) -> dict[str, Any]:
    """COCO-InstanceSegmentation/mask_rcnn_R_50_DC5_3x."""
    config = detectron2_fpn(classes)
    model = config["MODEL"]
    model["BACKBONE"]["NAME"] = "build_resnet_backbone"
    model["RESNETS"] |= {"OUT_FEATURES": ["res5"], "RES5_DILATION": 2}
    model["ANCHOR_GENERATOR"]["SIZES"] = [[32, 64, 128, 256, 512]]
    model["RPN"] |= {"IN_FEATURES": ["res5"], "PRE_NMS_TOPK_TEST": 6000}
    model["ROI_HEADS"]["IN_FEATURES"] = ["res5"]
    return config


def detectron2_deformable(classes: int) -> dict[str, Any]:
    """Misc/mask_rcnn_R_50_FPN_3x_dconv_c3-c5."""
    config = detectron2_fpn(classes)
    config["MODEL"]["RESNETS"]["DEFORM_ON_PER_STAGE"] = [False, True, True, True]
    return config


def detectron2_r101(classes: int) -> dict[str, Any]:
    """COCO-InstanceSegmentation/mask_rcnn_R_101_FPN_3x."""
    config = detectron2_fpn(classes)
    config["MODEL"]["RESNETS"]["DEPTH"] = 101
    return config


def detectron2_x101(classes: int) -> dict[str, Any]:
    """COCO-InstanceSegmentation/mask_rcnn_X_101_32x8d_FPN_3x."""
    config = detectron2_r101(classes)
    config["MODEL"]["PIXEL_STD"] = [57.375, 57.12, 58.395]
    config["MODEL"]["RESNETS"] |= {"NUM_GROUPS": 32, "WIDTH_PER_GROUP": 8, "STRIDE_IN_1X1": False}
    return config


def mmdetection(classes: int) -> dict[str, Any]:
    """configs/mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py."""
    extractor = {"featmap_strides": [4, 8, 16, 32]}
    return {
        "data_preprocessor": {
            "mean": [123.675, 116.28, 103.53],
            "std": [58.395, 57.12, 57.375],
            "bgr_to_rgb": True,
            "pad_size_divisor": 32,
        },
        "backbone": {"depth": 50, "style": "pytorch"},
        "neck": {"out_channels": 256},
        "rpn_head": {
            "anchor_generator": {"scales": [8], "ratios": [0.5, 1.0, 2.0], "strides": [4, 8, 16, 32, 64]},
            "bbox_coder": {"target_means": [0.0] * 4, "target_stds": [1.0] * 4},
        },
        "roi_head": {
            "bbox_roi_extractor": extractor | {"roi_layer": {"output_size": 7, "sampling_ratio": 0}},
            "bbox_head": {
                "roi_feat_size": 7,
                "fc_out_channels": 1024,
                "num_classes": classes,
                "reg_class_agnostic": False,
                "bbox_coder": {"target_means": [0.0] * 4, "target_stds": [0.1, 0.1, 0.2, 0.2]},
            },
            "mask_roi_extractor": extractor | {"roi_layer": {"output_size": 14, "sampling_ratio": 0}},
            "mask_head": {"num_convs": 4, "conv_out_channels": 256, "num_classes": classes},
        },
        "test_cfg": {
            "rpn": {"nms_pre": 1000, "max_per_img": 1000, "nms": {"iou_threshold": 0.7}, "min_bbox_size": 0},
            "rcnn": {"score_thr": 0.05, "nms": {"iou_threshold": 0.5}, "max_per_img": 100, "mask_thr_binary": 0.5},
        },
    }


def mmdetection_caffe(classes: int) -> dict[str, Any]:
    """configs/mask_rcnn/mask-rcnn_r50-caffe_fpn_1x_coco.py."""
    config = mmdetection(classes)
    config["backbone"]["style"] = "caffe"
    config["data_preprocessor"] |= {
        "mean": [103.53, 116.28, 123.675],
        "std": [1.0, 1.0, 1.0],
        "bgr_to_rgb": False,
    }
    return config


def mmdetection_deformable(classes: int) -> dict[str, Any]:
    """configs/dcnv2/mask-rcnn_r50-mdconv-c3-c5_fpn_1x_coco.py."""
    config = mmdetection(classes)
    config["backbone"] |= {
        "dcn": {"type": "DCNv2", "deform_groups": 1},
        "stage_with_dcn": (False, True, True, True),
    }
    return config


def maskrcnn_benchmark(classes: int) -> dict[str, Any]:
    """configs/e2e_mask_rcnn_R_50_FPN_1x.yaml."""
    scales = [0.25, 0.125, 0.0625, 0.03125]
    return {
        "MODEL": {
            "CLS_AGNOSTIC_BBOX_REG": False,
            "BACKBONE": {"CONV_BODY": "R-50-FPN"},
            "RESNETS": {
                "STEM_OUT_CHANNELS": 64,
                "RES2_OUT_CHANNELS": 256,
                "BACKBONE_OUT_CHANNELS": 256,
                "NUM_GROUPS": 1,
                "WIDTH_PER_GROUP": 64,
                "STRIDE_IN_1X1": True,
                "STAGE_WITH_DCN": [False] * 4,
                "WITH_MODULATED_DCN": False,
                "DEFORMABLE_GROUPS": 1,
            },
            "RPN": {
                "ANCHOR_SIZES": [32, 64, 128, 256, 512],
                "ANCHOR_STRIDE": [4, 8, 16, 32, 64],
                "ASPECT_RATIOS": [0.5, 1.0, 2.0],
                "PRE_NMS_TOP_N_TEST": 1000,
                "POST_NMS_TOP_N_TEST": 1000,
                "FPN_POST_NMS_TOP_N_TEST": 1000,
                "NMS_THRESH": 0.7,
                "MIN_SIZE": 0,
            },
            "ROI_HEADS": {
                "BBOX_REG_WEIGHTS": [10.0, 10.0, 5.0, 5.0],
                "SCORE_THRESH": 0.05,
                "NMS": 0.5,
                "DETECTIONS_PER_IMG": 100,
            },
            "ROI_BOX_HEAD": {
                "NUM_CLASSES": classes + 1,
                "MLP_HEAD_DIM": 1024,
                "POOLER_RESOLUTION": 7,
                "POOLER_SAMPLING_RATIO": 2,
                "POOLER_SCALES": scales,
            },
            "ROI_MASK_HEAD": {
                "CONV_LAYERS": [256, 256, 256, 256],
                "POOLER_RESOLUTION": 14,
                "POOLER_SAMPLING_RATIO": 2,
                "POOLER_SCALES": scales,
            },
        }
    }


def detectron_pytorch(classes: int) -> dict[str, Any]:
    """configs/baselines/e2e_mask_rcnn_R-50-FPN_1x.yaml; what it leaves out is in `detectron_pytorch.DEFAULTS`."""
    return {
        "MODEL": {"CONV_BODY": "FPN.fpn_ResNet50_conv5_body", "NUM_CLASSES": classes + 1},
        "FPN": {"FPN_ON": True, "MULTILEVEL_ROIS": True, "MULTILEVEL_RPN": True},
        "RESNETS": {},
        "FAST_RCNN": {
            "ROI_BOX_HEAD": "fast_rcnn_heads.roi_2mlp_head",
            "ROI_XFORM_METHOD": "RoIAlign",
            "ROI_XFORM_RESOLUTION": 7,
            "ROI_XFORM_SAMPLING_RATIO": 2,
        },
        "MRCNN": {
            "ROI_MASK_HEAD": "mask_rcnn_heads.mask_rcnn_fcn_head_v1up4convs",
            "RESOLUTION": 28,
            "ROI_XFORM_METHOD": "RoIAlign",
            "ROI_XFORM_RESOLUTION": 14,
            "ROI_XFORM_SAMPLING_RATIO": 2,
            "DILATION": 1,
        },
        "TEST": {"NMS": 0.5, "RPN_PRE_NMS_TOP_N": 1000, "RPN_POST_NMS_TOP_N": 1000},
    }


def detectron_pytorch_r101(classes: int) -> dict[str, Any]:
    """configs/baselines/e2e_mask_rcnn_R-101-FPN_2x.yaml."""
    config = detectron_pytorch(classes)
    config["MODEL"]["CONV_BODY"] = "FPN.fpn_ResNet101_conv5_body"
    return config


def detectron_pytorch_x101(classes: int) -> dict[str, Any]:
    """configs/baselines/e2e_mask_rcnn_X-101-32x8d-FPN_1x.yaml."""
    config = detectron_pytorch_r101(classes)
    config["RESNETS"] = {"NUM_GROUPS": 32, "WIDTH_PER_GROUP": 8, "STRIDE_1X1": False}
    return config
