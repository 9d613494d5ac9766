"""Prepared negatives fit together, and the operators read nothing out of bounds."""

from __future__ import annotations

import copy
import io
import pickle
import random

import pytest
import torch
from loss_cases import make_case
from torch._subclasses.fake_tensor import FakeTensorMode

import cac_ext
from cac_ext import _C

OPERATORS = torch.ops.cac_ext


@pytest.fixture
def case(seed):
    return make_case(seed, 20, 70, 9, 3)


def loss_of(case, negatives, **options):
    return cac_ext.directional_contrastive_loss(*case.arguments()[:6], negatives, **options)


def test_nothing_of_them_can_be_set(case):
    prepared = cac_ext.prepare_negatives(case.negatives, case.negative_labels)
    with pytest.raises(TypeError, match=r"made by cac_ext\.prepare_negatives"):
        cac_ext.PreparedNegatives(prepared, None)
    for name in ("_parts", "labels", "normalize", "anything"):
        with pytest.raises(AttributeError, match="cannot be set"):
            setattr(prepared, name, 1)
    assert not hasattr(prepared, "_replace")
    assert (len(prepared), prepared.channels) == (70, 9)
    assert "70 x 9" in repr(prepared)


def test_they_are_a_copy_of_what_was_given(case):
    prepared = cac_ext.prepare_negatives(case.negatives, case.negative_labels)
    before = loss_of(case, prepared)
    case.negatives.zero_()
    case.negative_labels.zero_()
    assert torch.equal(loss_of(case, prepared), before)


@pytest.mark.parametrize("ignore_index", [None, 1])
def test_copies_and_pickles_give_the_same_loss(case, ignore_index):
    prepared = cac_ext.prepare_negatives(
        case.negatives, case.negative_labels, ignore_index=ignore_index
    )
    file = io.BytesIO()
    torch.save(prepared, file)
    file.seek(0)
    saved = torch.load(file, weights_only=False)
    copies = [pickle.loads(pickle.dumps(prepared)), copy.deepcopy(prepared), saved, prepared.cpu()]
    for same in copies:
        assert torch.equal(
            loss_of(case, same, ignore_index=ignore_index, eps=1e-8),
            loss_of(case, prepared, ignore_index=ignore_index, eps=1e-8),
        )


def test_a_damaged_pickle_is_refused(case):
    prepared = cac_ext.prepare_negatives(case.negatives, case.negative_labels)
    read, (parts, *options) = prepared.__reduce__()
    features, labels, leading, valid, channels = parts
    for damaged in (
        (features, labels.flip(0), leading, valid, channels),
        (features, labels, torch.full_like(leading, 10**12), valid, channels),
        (features, labels, leading, torch.tensor(71), channels),
        (features[:, :5].contiguous(), labels, leading, valid, channels),
    ):
        with pytest.raises(ValueError, match="damaged"):
            read(damaged, *options)


def test_they_remember_how_they_were_made(case):
    raw = cac_ext.prepare_negatives(case.negatives, case.negative_labels, normalize=False)
    with pytest.raises(ValueError, match=r"prepared with normalize=False.*called with normalize=T"):
        loss_of(case, raw)
    unit = cac_ext.prepare_negatives(case.negatives, case.negative_labels)
    with pytest.raises(ValueError, match=r"prepared with normalize=True.*called with normalize=F"):
        loss_of(case, unit, normalize=False)
    with pytest.raises(ValueError, match=r"prepared with ignore_index=None.*ignore_index=255"):
        loss_of(case, unit, ignore_index=255)


def test_negatives_prepared_for_other_instructions_are_right_or_refused(seed):
    case = make_case(seed, 20, 70, 9, 3, torch.bfloat16)
    best, refused = _C.cpu_capability(), []
    expected = cac_ext.directional_contrastive_loss(*case.arguments(), reduction="none")
    for made in _C.cpu_capabilities():
        for used in _C.cpu_capabilities():
            _C.limit_cpu_capability(made)
            prepared = cac_ext.prepare_negatives(case.negatives, case.negative_labels)
            _C.limit_cpu_capability(used)
            try:
                losses = loss_of(case, prepared, reduction="none")
            except (TypeError, ValueError) as error:
                refused.append(str(error))
                continue
            finally:
                _C.limit_cpu_capability(best)
            torch.testing.assert_close(losses, expected, rtol=0.05, atol=0.15)
    assert all("prepare them" in message for message in refused)


def raw_arguments(case):
    """The arguments of the operator of one direction, by name."""
    prepared = OPERATORS.prepare_negatives(case.negatives, case.negative_labels, True, None)
    return {
        "anchors": case.features1,
        "positives": case.features2,
        **dict(zip(("negatives", "labels", "leading_rows", "num_valid"), prepared, strict=True)),
        "anchor_labels": case.pseudo_labels1,
        "active": torch.ones(len(case.features1), dtype=torch.bool),
    }


def call(given):
    return OPERATORS.masked_contrastive_loss(
        given["anchors"], given["positives"], given["negatives"], given["anchor_labels"],
        given["labels"], given["leading_rows"], given["num_valid"], given["active"],
        0.1, True, 1e-8, None, True,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("leading_rows", lambda x: torch.full_like(x, 10**12)),
        ("leading_rows", lambda x: -x - 1),
        ("leading_rows", lambda x: x.float()),
        ("leading_rows", lambda x: torch.cat([x, x])),
        ("leading_rows", lambda x: x.expand(2, -1)[:, ::2]),
        ("labels", lambda x: x.flip(0)),
        ("labels", lambda x: x[:-1]),
        ("labels", lambda x: x.int()),
        ("num_valid", lambda x: x + 1),
        ("num_valid", lambda x: x - 1000),
        ("num_valid", lambda x: x[None]),
        ("num_valid", lambda x: x.double()),
        ("negatives", lambda x: x[:, :4].contiguous()),
        ("negatives", lambda x: x[:, :-1].contiguous()),
        ("negatives", lambda x: x.T.contiguous().T),
        ("negatives", lambda x: x.half()),
        ("negatives", lambda x: x.double()),
        ("negatives", lambda x: x[:5]),
        ("negatives", lambda x: torch.nn.functional.pad(x, (0, 1))),
        ("positives", lambda x: x[:-1]),
        ("positives", lambda x: x.double()),
        ("anchor_labels", lambda x: x[:-1]),
        ("anchor_labels", lambda x: x.float()),
        ("active", lambda x: x[:-1]),
        ("active", lambda x: x.long()),
        ("anchors", lambda x: x[0]),
        ("anchors", lambda x: x.long()),
    ],
)
def test_the_operators_refuse_whatever_does_not_fit(case, name, change):
    given = raw_arguments(case)
    given[name] = change(given[name])
    with pytest.raises((ValueError, TypeError)):
        call(given)


def test_the_fakes_refuse_shapes_and_types_too(case):
    given = raw_arguments(case)
    wrong = {
        "positives": lambda x: x[:-1],
        "anchor_labels": lambda x: x[:-1],
        "labels": lambda x: x[:-1],
        "leading_rows": lambda x: x.float(),
        "negatives": lambda x: x[:, :4],
        "active": lambda x: x.long(),
        "anchors": lambda x: x.long(),
    }
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = {name: mode.from_tensor(value) for name, value in given.items()}
        loss, gradient = call(fake)
        assert loss.shape == (20,)
        assert gradient.shape == (20, 9)
        for name, change in wrong.items():
            with pytest.raises((ValueError, TypeError)):
                call({**fake, name: change(fake[name])})


def test_random_arguments_of_the_operators_never_break_the_process(seed):
    """Sizes, types and values at random: an answer or a Python error."""
    draw = random.Random(seed)
    torch.manual_seed(seed)
    answers = 0
    for _ in range(300):
        rows, count, channels = (draw.choice((0, 1, 3, 17, 40)) for _ in range(3))
        case = make_case(seed, max(rows, 1), max(count, 1), max(channels, 1), 3)
        given = raw_arguments(case)
        for name in draw.sample(sorted(given), draw.choice((0, 1, 2))):
            value = given[name]
            given[name] = draw.choice(
                (
                    lambda x: x[: len(x) // 2] if x.dim() else x,
                    lambda x: (torch.rand_like(x.double()) * 2e12 - 1e12).to(x.dtype),
                    lambda x: x.to(draw.choice((torch.float32, torch.int64, torch.bfloat16))),
                    lambda x: torch.cat([x, x]) if x.dim() else x,
                    lambda x: x.t() if x.dim() == 2 else x,
                )
            )(value)
        try:
            call(given)
            answers += 1
        except (ValueError, TypeError, RuntimeError):
            pass
    assert answers > 30
