"""Random calls far beyond those of a training; ``loss_torture`` runs more of them."""

from __future__ import annotations

import pytest
from loss_torture import draw, judge


@pytest.mark.usefixtures("one_thread")
def test_random_calls_equal_the_oracle_within_proved_bounds(seed):
    verdicts = {call: judge(call) for call in map(draw, range(seed, seed + 300))}
    failures = [f"{verdict}: {call}" for call, verdict in verdicts.items() if not verdict.passed]
    assert not failures, f"{len(failures)} calls failed:\n" + "\n".join(failures[:5])
    # The test judges the loss only if it answers nearly all calls.
    assert sum(not verdict.refusal for verdict in verdicts.values()) > 200
