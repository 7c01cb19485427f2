"""A driving motion in the proportions and at the place of another person.

The steps are those of Wan-Animate's release, its quirks included, as the network was trained with them; the code is our
own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wan_core.animate import keypoints as at
from wan_core.animate.keypoints import LIMBS, PosePoints, Skeleton
from wan_core.animate.proportions import (
    SEEN,
    SHOULDERS,
    UNKNOWN,
    Figure,
    Shown,
    bone_ratios,
    edit_ratio,
    repaired,
    shown_part,
    size_ratio,
)
from wan_core.errors import MediaError
from wan_core.media import FrameSize

Floats = NDArray[np.float64]

# Feet are at most half as long as shins: the limbs by their place in LIMBS.
_FEET = ((18, 8), (17, 11))
_LONGEST_FOOT = 0.5
_WRISTS = (at.RIGHT_WRIST, at.LEFT_WRIST)


@dataclass(frozen=True)
class Retargeting:
    """How all frames of a driving video are changed; from `plan_retargeting`.

    ``ratios`` [19] lengthen the limbs in pixels of the driving frames, ``missing`` [20] points are dropped, ``offset``
    (x, y) is subtracted in those pixels, and the ``scale`` divides: what comes out is in pixels of the ``canvas``.
    ``anchor_x`` is where the first frame was held, ``shown`` the part of the body that both show; what has a score
    below the ``threshold`` does not tell it, and is dropped from hands.
    """

    scale: float
    ratios: Floats
    missing: NDArray[np.bool_]
    shown: Shown
    offset: Floats
    anchor_x: float
    canvas: FrameSize
    threshold: float = SEEN

    def apply(self, frame: PosePoints, *, is_first: bool = False) -> Skeleton:
        """A frame's person on the canvas; hands in whole pixels.

        A hand goes where its wrist goes. Points of hands with scores below the ``threshold`` become NaN with the score
        0, and so do those of the body that are missing. Without ``is_first`` a frame keeps its distance from the first.
        """
        figure = Figure.of(frame).without(self.missing)
        pixels = lengthened(figure.pixels, self.ratios, limit_feet=True)
        offset = self.offset.copy()
        if is_first:
            offset[0] += _own_anchor_x(pixels, self.shown, self.anchor_x) - self.anchor_x
        body = (pixels - offset) / self.scale
        shoulders = self.ratios[list(SHOULDERS)].max()
        ratio = float((1.0 if shoulders == UNKNOWN else shoulders) / self.scale)
        hands = moved_hands(frame, figure.pixels, body, ratio, self.threshold)
        return Skeleton(body=np.column_stack([body, figure.points[:, 2]]), left_hand=hands[0], right_hand=hands[1])


def retarget(
    first: PosePoints,
    reference: PosePoints,
    frames: Iterable[PosePoints],
    edited: tuple[PosePoints, PosePoints] | None = None,
) -> Iterator[Skeleton]:
    """The ``frames`` of a driving video on the canvas of the ``reference``, one by one, in its proportions.

    ``first`` is the first of them; ``edited`` are a driving frame and the reference in the same pose, which tell
    proportions better.
    """
    plan = plan_retargeting(first, reference, edited)
    for index, frame in enumerate(frames):
        yield plan.apply(frame, is_first=index == 0)


def plan_retargeting(
    first: PosePoints,
    reference: PosePoints,
    edited: tuple[PosePoints, PosePoints] | None = None,
    threshold: float = SEEN,
) -> Retargeting:
    """What retargeting does to every frame, from the ``first`` driving one and the ``reference`` (see `retarget`).

    Raises MediaError where the point is missing by which one of them is held.
    """
    driving, target = Figure.of(first), Figure.of(reference)
    scale, _ = size_ratio(driving, target)
    shown = min(shown_part(driving, threshold), shown_part(target, threshold))
    scaled = target.scaled(scale)
    if edited is None:
        whole, scaled = repaired(driving), repaired(scaled)
        missing = whole.missing | scaled.missing
        ratios = bone_ratios(whole, scaled)
    else:
        own, wanted = (Figure.of(each) for each in edited)
        edited_scale, is_measured = size_ratio(own, wanted)
        factor = 1.0 if is_measured else edit_ratio(target, wanted) / edit_ratio(driving, own)
        missing = driving.missing | target.missing  # repaired are the edited ones alone
        ratios = bone_ratios(repaired(own), repaired(wanted.scaled(edited_scale)), factor)
    anchor = _anchor(lengthened(driving.pixels, ratios), shown)
    offset = anchor - _target_anchor(scaled.without(missing), shown)
    if np.isnan(offset).any():
        raise MediaError("a person cannot be placed: neck, hips or ankles are missing; show more of both persons")
    return Retargeting(
        scale=scale,
        ratios=ratios,
        missing=missing,
        shown=shown,
        offset=offset,
        anchor_x=float(anchor[0]),
        canvas=FrameSize(target.width, target.height),
        threshold=threshold,
    )


def lengthened(points: Floats, ratios: Floats, *, limit_feet: bool = False) -> Floats:
    """Points [20, 2] in pixels with every limb ``ratios`` [19] times as long, all directions kept, from the neck on.

    A limb that lacks an end moves nothing, and one of an unknown ratio (-1) keeps its length. With ``limit_feet`` a
    foot is at most half as long as its shin.
    """
    starts, ends = (list(each) for each in zip(*LIMBS, strict=True))
    limbs = (points[ends] - points[starts]) * np.where(ratios == UNKNOWN, 1.0, ratios)[:, None]
    if limit_feet:
        lengths = np.hypot(*limbs.T)
        for foot, shin in _FEET:
            if lengths[foot] > _LONGEST_FOOT * lengths[shin]:
                limbs[foot] *= _LONGEST_FOOT * lengths[shin] / lengths[foot]
    moved: Floats = points.copy()
    for start, end, limb in zip(starts, ends, limbs, strict=True):
        if not np.isnan(limb).any():
            moved[end] = moved[start] + limb
    return moved


def _anchor(pixels: Floats, shown: Shown) -> Floats:
    """Where a driving body is held (x, y): between its hips above the lower ankle, or at the neck."""
    if shown is not Shown.FULL:
        return np.array(pixels[at.NECK])
    hips, ankles = pixels[[at.RIGHT_HIP, at.LEFT_HIP]], pixels[[at.RIGHT_ANKLE, at.LEFT_ANKLE]]
    return np.array([hips[:, 0].mean(), ankles[:, 1].max()])


def _target_anchor(target: Figure, shown: Shown) -> Floats:
    """Where the reference is held: as the driving body, but with the middle of ankle and toe for the ankle."""
    pixels, ankles, toes = target.pixels, [at.RIGHT_ANKLE, at.LEFT_ANKLE], [at.RIGHT_TOE, at.LEFT_TOE]
    if not target.missing[toes].any():
        pixels[ankles] = (pixels[ankles] + pixels[toes]) / 2
    return _anchor(pixels, shown)


def _own_anchor_x(pixels: Floats, shown: Shown, default: float) -> float:
    """Where a frame's own body is held along x; the ``default`` where three quarters of it are seen, or too little."""
    own = default if shown is Shown.THREE_QUARTERS else float(_anchor(pixels, shown)[0])
    return default if np.isnan(own) else own


def moved_hands(
    frame: PosePoints, old: Floats, new: Floats, ratio: float, threshold: float = SEEN
) -> tuple[Floats, Floats]:
    """Both hands [21, 3] of a frame on the canvas, where the body's points went from ``old`` to ``new`` [20, 2].

    They are made ``ratio`` times as large about their roots, and moved in whole pixels so that the root is where the
    wrist is now; a hand whose root is not seen moves as the wrist. As in the release the first one is the right hand,
    with wrist 4, unless its root is nearer to wrist 7 than to wrist 4: then both change places. Where a wrist is
    missing its hand stays a share of the frame, which is not drawn, and the other one moves as its wrist.
    """
    size = np.array([frame.width, frame.height], dtype=np.float64)
    given = (frame.right_hand, frame.left_hand)
    hands = [scaled_hand(hand, size, ratio, threshold) for hand in given]
    moves = [new[wrist] - old[wrist] for wrist in _WRISTS]
    if not np.isnan(moves).any():
        are_seen = [bool(hand[0, 2] >= threshold) for hand in given]
        roots = [hand[0, :2] * size if is_seen else -size for hand, is_seen in zip(given, are_seen, strict=True)]
        for index in (0, 1):
            if are_seen[index]:
                moves[index] = moves[index] + old[_WRISTS[index]] - roots[index]
        own, other = (float(np.hypot(*(roots[0] - old[wrist]))) for wrist in _WRISTS)
        if other < own:
            hands.reverse()
    return _placed(hands[0], moves[0], size), _placed(hands[1], moves[1], size)


def _placed(hand: Floats, move: Floats, size: Floats) -> Floats:
    if np.isnan(move).any():
        return np.column_stack([np.nan_to_num(hand[:, :2] / size, nan=-1.0), hand[:, 2]])
    return np.column_stack([np.trunc(hand[:, :2] + move), hand[:, 2]])


def scaled_hand(hand: Floats, size: Floats, ratio: float, threshold: float = SEEN) -> Floats:
    """A hand [21, 3] in pixels of a frame of this ``size``, ``ratio`` times as large about its root.

    Points with a score below the ``threshold`` are NaN with the score 0.
    """
    pixels, seen = hand[:, :2] * size, hand[:, 2:] >= threshold
    grown = np.where(seen, pixels[0] + (pixels - pixels[0]) * ratio, np.nan)
    return np.column_stack([grown, np.where(seen[:, 0], hand[:, 2], 0.0)])
