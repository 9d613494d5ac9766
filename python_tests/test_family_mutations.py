"""The judge of the family of losses rejects wrong ones."""

from __future__ import annotations

import pytest
import torch
from family_cases import assert_equals_oracle, contrastive, make_case, supervised

import cac_ext
from cac_ext import reference


def scaled_gradient(factor):
    class Scale(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.view_as(x)

        @staticmethod
        def backward(ctx, grad):
            return factor * grad

    return Scale.apply


SLIGHTLY_OFF = scaled_gradient(1.01)


def wrong_loss(name, case, make_loss, kind):
    right = make_loss(cac_ext, case, kind)

    def loss(anchors, positives, keys, temperature, **options):
        if name == "gradient of the anchors off by 1%":
            anchors = SLIGHTLY_OFF(anchors)
        elif name == "gradient of the keys off by 1%":
            keys = SLIGHTLY_OFF(keys)
        elif name == "gradient of the temperature off by 1%":
            temperature = SLIGHTLY_OFF(temperature)
        elif name == "the keys get no gradient":
            keys = keys.detach()
        elif name == "nothing excluded":
            options["exclude"] = torch.full_like(options["exclude"], -1)
        elif name == "the neighbor excluded":
            options["exclude"] = options["exclude"].roll(1)
        elif name == "one key too few":
            options["num_valid"] = case.num_valid - 1
        elif name == "one key too many":
            options["num_valid"] = case.num_valid + 1
        return right(anchors, positives, keys, temperature, **options)

    return loss


@pytest.mark.parametrize(
    ("make_loss", "kind"),
    [(contrastive, "different"), (contrastive, "all"), (supervised, "supcon"),
     (supervised, "pairwise")],
)  # fmt: skip
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize(
    "name",
    [
        "gradient of the anchors off by 1%", "gradient of the keys off by 1%",
        "gradient of the temperature off by 1%", "the keys get no gradient", "nothing excluded",
        "the neighbor excluded", "one key too few", "one key too many",
    ],
)  # fmt: skip
def test_a_wrong_loss_is_rejected(name, dtype, make_loss, kind):
    # A fixed input: whether a mutant is rejected must not depend on luck.
    case = make_case(1, 70, 81, 16, 3, dtype)
    oracle = make_loss(reference, case, kind)
    options = {"exclude": case.exclude, "num_valid": case.num_valid}
    assert_equals_oracle(make_loss(cac_ext, case, kind), oracle, case, 0.3, **options)
    with pytest.raises(AssertionError):
        assert_equals_oracle(wrong_loss(name, case, make_loss, kind), oracle, case, 0.3, **options)
