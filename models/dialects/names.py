"""Rules that turn a code base's names of weights into ours.

A rule is a pattern and a template: a key that the pattern matches in full (`re.fullmatch`) becomes `match.expand` of
the template. The first rule that matches counts.
"""

from __future__ import annotations

Rules = tuple[tuple[str, str], ...]


def resnet_names(theirs: str) -> Rules:
    """Stages of a ResNet as torchvision calls them: layer1 to layer4, bn1 to bn3, downsample; mmcv adds conv_offset.

    Args:
        theirs: pattern of what comes before `.layer1`.
    """
    return tuple(
        rule
        for i in range(4)
        for rule in (
            (rf"{theirs}\.layer{i + 1}\.(\d+)\.conv(\d)\.weight", rf"backbone.stages.{i}.\1.conv\2.weight"),
            (rf"{theirs}\.layer{i + 1}\.(\d+)\.conv2\.(?:conv\.)?weight", rf"backbone.stages.{i}.\1.conv2.weight"),
            (
                rf"{theirs}\.layer{i + 1}\.(\d+)\.conv2\.(?:conv_)?offset\.(\w+)",
                rf"backbone.stages.{i}.\1.conv2.offset.\2",
            ),
            (rf"{theirs}\.layer{i + 1}\.(\d+)\.bn(\d)\.(\w+)", rf"backbone.stages.{i}.\1.norm\2.\3"),
            (
                rf"{theirs}\.layer{i + 1}\.(\d+)\.downsample\.0\.weight",
                rf"backbone.stages.{i}.\1.shortcut.conv.weight",
            ),
            (
                rf"{theirs}\.layer{i + 1}\.(\d+)\.downsample\.1\.(\w+)",
                rf"backbone.stages.{i}.\1.shortcut.norm.\2",
            ),
        )
    )
