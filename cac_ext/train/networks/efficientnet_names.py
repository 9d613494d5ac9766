"""Tensor names of EfficientNet-PyTorch and its Lite variants, as timm calls the same tensors.

Their files (``_conv_stem.weight``, ``_blocks.0._depthwise_conv.weight``, ...) hold TensorFlow's
weights, like timm's ``tf_efficientnet_*``. Blocks are counted through in one and by stage in the
other, and convolutions have the same order.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

_STEM = "_conv_stem.weight"
_TOP = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
_SQUEEZE = {"_se_reduce": "se.conv_reduce", "_se_expand": "se.conv_expand"}
_EXPANDING = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
    **_SQUEEZE,
}
_PLAIN = {  # a block without expansion
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn1",
    "_project_conv": "conv_pw",
    "_bn2": "bn2",
    **_SQUEEZE,
}


def converted_from_tensorflow(state: Mapping[str, Tensor]) -> bool:
    """Whether the tensors have the names of EfficientNet-PyTorch, under any prefix."""
    return any(name == _STEM or name.endswith(f".{_STEM}") for name in state)


def to_timm_names(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The same tensors by timm's names; a name that does not fit the network is kept.

    Args:
        state: of EfficientNet-PyTorch.
        model: timm's network, whose ``blocks`` are grouped by stage.
    """
    (prefix, *_) = (name.removesuffix(_STEM) for name in state if name.endswith(_STEM))
    stages = model.get_submodule("blocks")
    blocks = [
        f"blocks.{stage}.{block}"
        for stage, inner in stages.named_children()
        for block, _ in inner.named_children()
    ]
    return {_renamed(name.removeprefix(prefix), state, prefix, blocks): x
            for name, x in state.items()}  # fmt: skip


def _renamed(name: str, state: Mapping[str, Tensor], prefix: str, blocks: list[str]) -> str:
    top, _, rest = name.partition(".")
    if top in _TOP:
        return f"{_TOP[top]}.{rest}"
    index, _, rest = rest.partition(".")
    part, _, leaf = rest.partition(".")
    expands = f"{prefix}_blocks.{index}._expand_conv.weight" in state
    parts = _EXPANDING if expands else _PLAIN
    if top != "_blocks" or int(index) >= len(blocks) or part not in parts:
        return name
    return f"{blocks[int(index)]}.{parts[part]}.{leaf}"
