"""A driving motion in the proportions of another person, as UniAnimate does it, or minding what was not seen.

The steps are those of UniAnimate-DiT; the code is our own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from selfforcing_unianimate.keypoints import INVISIBLE, Floats, Poses

_NECK, _SHOULDERS, _HIPS = 1, (2, 5), (8, 11)
_SHORTEST = 1e-4
"""Of the picture: a length below it is none, and says nothing about proportions."""
_LARGEST = 100.0
"""Times that a validated ratio may be; more is an error of the detector."""


@dataclass(frozen=True)
class _Limb:
    """A limb from ``parent`` to ``child``, and what moves with its end; ``hand`` 0 is the left one."""

    parent: int
    child: int
    moved: tuple[int, ...]
    hand: int | None = None


# In this order: each is measured after those before it have moved.
_LIMBS = (
    _Limb(1, 0, (0, 14, 15, 16, 17)),
    _Limb(1, 2, (2, 3, 4), 1),
    _Limb(1, 5, (5, 6, 7), 0),
    _Limb(2, 3, (3, 4), 1),
    _Limb(3, 4, (4,), 1),
    _Limb(5, 6, (6, 7), 0),
    _Limb(6, 7, (7,), 0),
    _Limb(0, 14, (14, 16)),
    _Limb(0, 15, (15, 17)),
    _Limb(14, 16, (16,)),
    _Limb(15, 17, (17,)),
    _Limb(8, 9, (9, 10, 19)),
    _Limb(9, 10, (10, 19)),
    _Limb(11, 12, (12, 13, 18)),
    _Limb(12, 13, (13, 18)),
)


def align(driving: Poses, reference: Poses, *, validated: bool = False) -> Poses:
    """The motion of ``driving`` with the limbs and at the place of ``reference``, of which the first pose counts.

    Ratios and the shift come from the first driving pose and are the same in all. By default every point counts, as in
    the reference implementation: one that was not seen, at (-1, -1), enters ratios and is moved like others, and limbs
    without a length give NaN or infinity. With ``validated`` only seen points do and are moved, and a ratio or shift
    that cannot be told, or makes no sense, is 1 or 0.
    """
    run = _Alignment(driving, reference, validated=validated)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        run.scale()
        for limb in _LIMBS:
            run.fit(limb)
        run.shift()
    return run.result()


class _Alignment:
    def __init__(self, driving: Poses, reference: Poses, *, validated: bool) -> None:
        self.driving, self.validated = driving, validated
        self.body, self.faces, self.hands = driving.body.copy(), driving.faces.copy(), driving.hands.copy()
        self.target = reference.body[0]
        self.seen = driving.subset >= 0  # [T, 20]
        self.target_seen = reference.subset[0] >= 0

    def _known(self, *joints: int) -> bool:
        """Whether these joints can be compared: seen in the reference and in the first driving pose."""
        return not self.validated or bool(self.seen[0, list(joints)].all() and self.target_seen[list(joints)].all())

    def _ratio(self, wanted: float, own: float, *joints: int) -> float:
        if not self.validated:
            return float(np.float64(wanted) / np.float64(own))
        if not self._known(*joints) or min(abs(wanted), abs(own)) < _SHORTEST:
            return 1.0
        ratio = wanted / own
        return ratio if 1 / _LARGEST < ratio < _LARGEST else 1.0

    def scale(self) -> None:
        """Step 1: the width of the shoulders and the height of the torso."""
        own, wanted = self.body[0], self.target
        right, left = _SHOULDERS
        widths = wanted[left, 0] - wanted[right, 0], own[left, 0] - own[right, 0]
        heights = [
            float(pose[list(_HIPS), 1].mean() - pose[list(_SHOULDERS), 1].mean()) for pose in (wanted, own)
        ]  # from the shoulders down to the hips
        ratios = (
            self._ratio(*widths, *_SHOULDERS),
            self._ratio(heights[0], heights[1], *_SHOULDERS, *_HIPS),
        )
        self.body, self.faces, self.hands = (points * ratios for points in (self.body, self.faces, self.hands))

    def fit(self, limb: _Limb) -> None:
        """Step 2: the length of one limb, by moving its end and what hangs on it."""
        wanted, own = (
            float(np.linalg.norm(pose[limb.child] - pose[limb.parent])) for pose in (self.target, self.body[0])
        )
        ratio = self._ratio(wanted, own, limb.parent, limb.child)
        move = (self.body[:, limb.parent] - self.body[:, limb.child]) * (1 - ratio)
        if self.validated:
            move = np.where(self.seen[:, [limb.parent, limb.child]].all(axis=1, keepdims=True), move, 0.0)
        self.body[:, limb.moved] += move[:, None]
        if limb.hand is not None:
            self.hands[:, limb.hand] += move[:, None]

    def shift(self) -> None:
        """Step 3: the neck of the first pose to that of the reference."""
        offset = self.target[_NECK] - self.body[0, _NECK]
        if self._known(_NECK):
            self.body, self.faces, self.hands = (points + offset for points in (self.body, self.faces, self.hands))

    def result(self) -> Poses:
        body, faces, hands = self.body, self.faces, self.hands
        if self.validated:
            body = np.where(self.seen[..., None], body, INVISIBLE)
            faces = _hidden_as_before(self.driving.faces, faces)
            hands = _hidden_as_before(self.driving.hands, hands)
        return replace(self.driving, body=body, faces=faces, hands=hands)


def _hidden_as_before(before: Floats, after: Floats) -> Floats:
    """The points after a move, those that were not seen where they were."""
    return np.where((before == INVISIBLE).all(axis=-1, keepdims=True), before, after)
