"""The folders of the pseudo labels that a run with the setting ``auto`` makes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from cac_ext.train.config import Config

#: In place of a folder: pseudo labels are made before training (`prepare.py`).
AUTO = "auto"


@dataclass(frozen=True)
class PseudoLabelFolders:
    """A teacher and its labels, an image classifier and the labels of its activation maps."""

    teacher: Path
    teacher_labels: Path
    classifier: Path
    activation_labels: Path

    @staticmethod
    def of_run(folder: Path) -> PseudoLabelFolders:
        """Inside a run folder, so that the run folder can be moved."""
        return PseudoLabelFolders(
            folder / "teacher",
            folder / "teacher_labels",
            folder / "classifier",
            folder / "activation_labels",
        )

    @staticmethod
    def shared(folder: Path, seed: int) -> PseudoLabelFolders:
        """Shared by the runs of a seed in ``folder``; the teacher is its ``sup_only`` run."""
        return PseudoLabelFolders(
            folder / f"sup_only-seed{seed}",
            folder / f"teacher-labels-seed{seed}",
            folder / f"classifier-seed{seed}",
            folder / f"activation-labels-seed{seed}",
        )

    def fill_in(self, config: Config) -> Config:
        """The configuration with these folders in place of ``auto``."""
        if config.self_training.pseudo_labels == AUTO:
            teacher_labels = replace(config.self_training, pseudo_labels=str(self.teacher_labels))
            config = replace(config, self_training=teacher_labels)
        if config.weak.pseudo_labels == AUTO:
            weak = replace(config.weak, pseudo_labels=str(self.activation_labels))
            config = replace(config, weak=weak)
        return config
