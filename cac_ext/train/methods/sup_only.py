"""SupOnly: cross entropy on the labelled images, the lower line of every comparison."""

from __future__ import annotations

from collections.abc import Iterator

from cac_ext.train.methods.contract import Method, MethodContext, Phase, Step, StreamRequest


class SupOnly(Method):
    """The supervised loss alone; with ``self_training.pseudo_labels`` also on a teacher's masks.

    The latter is self-training, "ST" of the paper's Table 3 (`pseudo_labels/self_training.py`).
    """

    def __init__(self, context: MethodContext) -> None:
        super().__init__(context)
        self.trained["network"] = context.network

    def streams(self) -> dict[str, StreamRequest]:
        return self.supervised_streams()

    def step(self, step: Step) -> Iterator[Phase]:
        batch = self.supervised_batch(step.batches)
        logits = step.modules["network"](batch.images)  # [B, K, S, S]
        supervised, finite = self.supervised_loss(logits, batch.masks)
        if step.proceeds(finite):
            yield Phase(supervised, {"supervised": supervised})
