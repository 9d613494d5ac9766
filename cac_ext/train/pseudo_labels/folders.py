"""Where the pseudo labels lie that are made for a run whose configuration says ``auto``."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from cac_ext.train.config import Config

#: In place of a folder: pseudo labels that are made before training (`prepare.py`).
AUTO = "auto"


@dataclass(frozen=True)
class PseudoLabelFolders:
    """The teacher's run and its labels, the image classifier and those of its activation maps."""

    teacher: Path
    teacher_labels: Path
    classifier: Path
    activation_labels: Path

    @staticmethod
    def of_run(folder: Path) -> PseudoLabelFolders:
        """Inside a run folder, which needs nothing beyond it and can be moved."""
        return PseudoLabelFolders(
            folder / "teacher",
            folder / "teacher_labels",
            folder / "classifier",
            folder / "activation_labels",
        )

    @staticmethod
    def shared(folder: Path, seed: int) -> PseudoLabelFolders:
        """Shared by a seed's runs below ``folder``; the teacher is ``sup_only`` of that seed."""
        return PseudoLabelFolders(
            folder / f"sup_only-seed{seed}",
            folder / f"teacher-labels-seed{seed}",
            folder / f"classifier-seed{seed}",
            folder / f"activation-labels-seed{seed}",
        )

    def fill_in(self, config: Config) -> Config:
        """The configuration with these folders in place of ``auto``."""
        if config.self_training.pseudo_labels == AUTO:
            section = replace(config.self_training, pseudo_labels=str(self.teacher_labels))
            config = replace(config, self_training=section)
        if config.weak.pseudo_labels == AUTO:
            section = replace(config.weak, pseudo_labels=str(self.activation_labels))
            config = replace(config, weak=section)
        return config
