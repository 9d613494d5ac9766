"""Guided Collaborative Training, Ke et al., ECCV 2020.

method.py         the method: two networks, three phases
flaw_detector.py  the network that finds flaws in predictions
flaw_maps.py      true flaws, handled flaws, and what each network learns from them
"""

from __future__ import annotations
