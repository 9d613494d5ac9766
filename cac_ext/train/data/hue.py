"""torchvision's change of hue for 8-bit images, bit for bit, in less than half of its time.

With it, half of the time of a crop pair was spent. torchvision uses operations that are slow on a
CPU (`aminmax`, `fmod`, `gather` by a table of int64 indices). Here each is replaced by an equal one
that the CPU does for many pixels at once, and the four values that a channel is chosen from are
turned into 8 bits before the choice rather than after it.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as VF

_LEAST = 0.5 / 255  # less than a gray level
_TO_UINT8 = 255 + 1.0 - 1e-3  # as torchvision rounds


class View(tv_tensors.Image):
    """A uint8 image ``[3, H, W]`` whose hue torchvision's transforms change by `adjust_hue`."""


@VF.register_kernel(VF.adjust_hue, View)
def adjust_hue(image: Tensor, hue_factor: float) -> Tensor:
    """Shifts the hue by ``hue_factor`` (0.5: half of the color circle), ``[3, H, W]`` uint8."""
    plain = image.as_subclass(Tensor)
    red, green, blue = plain
    largest = torch.maximum(torch.maximum(red, green), blue)  # [H, W]
    smallest = torch.minimum(torch.minimum(red, green), blue)
    red_leads = (largest == red).view(torch.uint8)
    green_leads = (largest == green).view(torch.uint8) & (1 - red_leads)

    value = _to_float(largest)
    spread = value - _to_float(smallest)
    # Gray pixels have no spread: 0 / anything is torchvision's 0.
    saturation = spread / value.clamp(min=_LEAST)
    from_red, from_green, from_blue = (value - _to_float(plain)).div_(spread.clamp_(min=_LEAST))
    hue = (from_green + 4.0).sub_(from_red).mul_(1 - red_leads - green_leads)
    hue.add_((from_red + 2.0).sub_(from_blue).mul_(green_leads))
    hue.add_(from_blue.sub_(from_green).mul_(red_leads))
    hue.mul_(1.0 / 6.0).add_(1.0).frac_().add_(hue_factor)
    hue.sub_(hue.floor()).mul_(6)

    sector = hue.floor()  # 0 to 6
    rest = hue.sub_(sector).mul_(saturation)
    gray = 1.0 - saturation
    q = _to_uint8((1.0 - rest).mul_(value))
    t = _to_uint8(rest.add_(gray).mul_(value))
    p = _to_uint8(gray.mul_(value))
    v = _to_uint8(value)
    sector = sector.to(torch.uint8)
    in_1, in_2, in_3, in_4, in_5 = ((sector == k).view(torch.uint8) for k in range(1, 6))
    in_12, in_23, in_34, in_45 = in_1 + in_2, in_2 + in_3, in_3 + in_4, in_4 + in_5
    shifted = torch.empty_like(plain, memory_format=torch.contiguous_format)
    for channel, (first, second, third), otherwise in (
        (shifted[0], ((in_1, q), (in_23, p), (in_4, t)), v),
        (shifted[1], ((in_12, v), (in_3, q), (in_45, p)), t),
        (shifted[2], ((in_2, t), (in_34, v), (in_5, q)), p),
    ):
        torch.mul(1 - first[0] - second[0] - third[0], otherwise, out=channel)
        channel.addcmul_(*first).addcmul_(*second).addcmul_(*third)
    return shifted.as_subclass(View)


def _to_float(values: Tensor) -> Tensor:
    return values.to(torch.float32).mul_(1.0 / 255)


def _to_uint8(values: Tensor) -> Tensor:
    return values.clamp_(0.0, 1.0).mul_(_TO_UINT8).to(torch.uint8)
