"""Poses: read from the files that pose estimators write, or seen in a photo, and drawn as OpenPose draws them.

Nothing here needs torch; seeing people in a photo needs the extra `pose`.
"""

from __future__ import annotations

from headrace.pose.draw import draw_poses
from headrace.pose.keypoints import Person, Poses, read_poses
from headrace.pose.open import open_poses

__all__ = ["Person", "Poses", "draw_poses", "open_poses", "read_poses"]
