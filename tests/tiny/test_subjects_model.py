"""The bundled tiny-bindweave on a held-back scene that it shows as it should; it does so with few of them."""

import numpy as np

from tools.tiny.subject_evaluation import held_back, make_videos, shipped, strip, summary, table
from tools.tiny.subjects import MOST_SUBJECTS
from tools.tiny.subjects_detect import judge

NUMBER = 54  # a plain red square that moves to the right


def test_a_held_back_subject_has_its_look_and_moves_as_the_prompt_says() -> None:
    scene = held_back(1)[NUMBER]
    (video,) = make_videos(shipped(), [scene], [NUMBER])
    assert judge(video, scene) == dict.fromkeys(("look", "motion", "all", "looks", "motions", "background"), 1.0)
    assert strip(scene, video).shape == (64, 64 * (MOST_SUBJECTS + 5) + 6, 3)


def test_percentages_have_intervals_and_a_table() -> None:
    rows = [{"look": float(right), "motion": 1.0} for right in np.arange(40) < 10]
    found = summary(rows)
    mean, low, high = found["look"]
    assert mean == 25
    assert low < mean < high
    assert found["motion"] == [100, 100, 100]
    assert "| 1 | tiny-bindweave | 25 [" in table({"1": {"tiny-bindweave": found}})[2]
