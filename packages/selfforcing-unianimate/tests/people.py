"""A made-up person for tests: joints of OpenPose, in parts of a picture."""

import numpy as np

from selfforcing_unianimate.keypoints import NUM_POINTS, Poses

JOINTS = np.array(
    [
        (0.50, 0.20), (0.50, 0.30), (0.40, 0.30), (0.36, 0.42), (0.34, 0.52), (0.60, 0.30), (0.64, 0.42), (0.66, 0.52),
        (0.44, 0.55), (0.43, 0.72), (0.42, 0.88), (0.56, 0.55), (0.57, 0.72), (0.58, 0.88), (0.48, 0.18), (0.52, 0.18),
        (0.46, 0.19), (0.54, 0.19), (0.60, 0.91), (0.40, 0.91),
    ]
)  # fmt: skip


def person(
    frames: int = 1, *, scale: float = 1.0, at: tuple[float, float] = (0.0, 0.0), hidden: tuple[int, ...] = ()
) -> Poses:
    """``frames`` poses that walk to the right, scaled about the origin, then moved; ``hidden`` joints are not seen."""
    walk = np.linspace(0, 0.05 * (frames > 1), frames)[:, None, None] * np.array([1.0, 0.0])
    body = JOINTS * scale + np.array(at) + walk
    subset = np.tile(np.arange(20.0), (frames, 1))
    face = body[:, :1] + np.linspace(-0.02, 0.02, 68)[:, None]
    hands = body[:, [7, 4], None] + np.linspace(0, 0.03, 21)[:, None]
    body[:, list(hidden)], subset[:, list(hidden)] = -1.0, -1.0
    return Poses(body=body, subset=subset, faces=face, hands=hands, scores=np.ones((frames, NUM_POINTS)))
