"""The bundled tiny Pi3 reconstructs rooms that it was not trained on."""

import json

import pytest

from pi3 import load_pi3
from pi3.checkpoints import bundled_weights
from tools.tiny.pi3_train import CONFIG, ROUNDS, evaluate, training_seeds
from tools.tiny.rooms import EVALUATION_SEEDS
from wan_core.checkpoints import read_weights


def test_training_never_sees_the_held_back_scenes() -> None:
    for index in range(ROUNDS):
        assert not set(training_seeds(index)) & set(EVALUATION_SEEDS)
    with pytest.raises(ValueError, match="held-back"):
        training_seeds(EVALUATION_SEEDS.start)


def test_bundled_weights_are_small_and_carry_their_scores() -> None:
    path = bundled_weights()
    scores = json.loads(read_weights(path).metadata["scores"])
    assert path.stat().st_size <= 3_000_000
    assert scores["abs_rel"] < scores["constant_abs_rel"] / 3
    assert scores["ate"] < scores["identity_ate"] / 3


def test_bundled_model_knows_depth_and_cameras_of_new_rooms() -> None:
    model = load_pi3()
    assert model.config == CONFIG
    scores = evaluate(model, EVALUATION_SEEDS[:3])
    assert scores["abs_rel"] < scores["constant_abs_rel"] / 3
    assert scores["ate"] < scores["identity_ate"] / 3
