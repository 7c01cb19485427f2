"""The settings of the released models, as their original code has them."""

import hashlib

import pytest

from wan_core.errors import RequestError
from wan_core.presets import get_preset
from wan_core.tasks import GenerationRequest, I2VRequest

# SHA-256, first 16 digits, of the shared text alone, behind 镜头晃动， (camera shake) and behind 镜头切换， (cuts).
SHARED, SHAKE, CUTS = "ce96e0324e4b54ce", "412753d092bcf370", "07bf449b841b5c9f"


@pytest.mark.parametrize(
    ("preset", "digest"),
    [
        ("t2v-A14B", SHARED),
        ("i2v-A14B", SHARED),
        ("ti2v-5B", SHARED),
        ("t2v-14B", SHARED),
        ("t2v-1.3B", SHARED),
        ("mi2v-5B", SHARED),
        ("poze-5B", SHARED),
        ("i2v-14B-480P", SHAKE),
        ("i2v-14B-720P", SHAKE),
        ("flf2v-14B", CUTS),
    ],
)
def test_the_negative_prompt_is_the_one_of_the_original(preset: str, digest: str) -> None:
    text = get_preset(preset).sampling.negative_prompt
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == digest


@pytest.mark.parametrize("preset", ["i2v-14B-480P", "i2v-14B-720P"])
@pytest.mark.parametrize(
    ("size", "shift"), [((832, 480), 3.0), ((480, 832), 3.0), ((1280, 720), 5.0), ((720, 1280), 5.0)]
)
def test_wan21_image_models_have_the_shift_of_the_size(preset: str, size: tuple[int, int], shift: float) -> None:
    width, height = size
    found = get_preset(preset).settings_of(I2VRequest(prompt="p", image="a.png", width=width, height=height))
    assert found.flow_shift == shift
    asked = I2VRequest(prompt="p", image="a.png", width=width, height=height, flow_shift=7.0)
    assert get_preset(preset).settings_of(asked).flow_shift == 7.0


def test_the_shift_of_the_models_own_size_is_its_own() -> None:
    for name, shift in {"i2v-14B-480P": 3.0, "i2v-14B-720P": 5.0, "t2v-1.3B": 5.0, "flf2v-14B": 16.0}.items():
        preset = get_preset(name)
        assert preset.settings_of(preset.task.request_type(prompt="p")).flow_shift == shift
    small = get_preset("t2v-14B").settings_of(GenerationRequest(prompt="p", width=832, height=480))
    assert small.flow_shift == 5.0


def test_half_a_size_is_refused() -> None:
    with pytest.raises(RequestError, match="give both or neither"):
        get_preset("i2v-14B-480P").settings_of(I2VRequest(prompt="p", image="a.png", width=832))
