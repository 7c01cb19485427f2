"""The speech encoder: its names in files, what files may say of it, its states, and those of each video frame."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import Wav2Vec2ForCTC, Wav2Vec2Model

from tools.make_checkpoint import SPEECH_ENCODER, write_speech_encoder
from wan_core.checkpoints import WAV2VEC2, load_model, native_weights, read_weights, write_shards
from wan_core.checkpoints.families.wav2vec2 import transformers_config
from wan_core.errors import CheckpointError, ConfigError, RequestError
from wan_core.models import (
    WAV2VEC2_LARGE_XLSR_53,
    Wav2Vec2,
    Wav2Vec2Config,
    frame_rows,
    interpolate_states,
    num_audio_clips,
    num_interpolated,
    states_at,
)
from wan_core.models.audio.wav2vec2 import normalised


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The speech encoder's folder as it is published, tiny."""
    return write_speech_encoder(tmp_path / "speech", seed=3)


def opened(folder: Path) -> Wav2Vec2:
    native = native_weights(read_weights(folder), WAV2VEC2)
    model: Wav2Vec2 = load_model(WAV2VEC2.read_config(folder, native), native, family=WAV2VEC2)
    return model


def waveform(seconds: float = 0.5) -> Tensor:
    return torch.randn(1, int(16_000 * seconds), generator=torch.Generator().manual_seed(0)) * 0.1 + 0.3


def edit(file: Path, **values: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def test_a_published_folder_tells_its_config(folder: Path) -> None:
    assert opened(folder).config == SPEECH_ENCODER


def test_our_states_are_those_of_transformers(folder: Path) -> None:
    peer = Wav2Vec2ForCTC.from_pretrained(folder).eval()
    with torch.no_grad():
        ours = opened(folder)(waveform())
        theirs = peer.wav2vec2(normalised(waveform()), output_hidden_states=True)
    assert ours.shape == (1, SPEECH_ENCODER.states, SPEECH_ENCODER.num_moments(8000), SPEECH_ENCODER.dim)
    for index, states in enumerate(theirs.hidden_states[:-1]):
        assert torch.allclose(ours[:, index], states, atol=1e-5)
    assert torch.allclose(ours[:, -1], theirs.last_hidden_state, atol=1e-5)


def test_transformers_reads_what_we_write(folder: Path, tmp_path: Path) -> None:
    model = opened(folder)
    write_shards(read_weights(folder), tmp_path / "again", stem="model")
    (tmp_path / "again/config.json").write_text(json.dumps(transformers_config(model.config)))
    peer = Wav2Vec2Model.from_pretrained(tmp_path / "again").eval()
    with torch.no_grad():
        assert torch.allclose(peer(normalised(waveform())).last_hidden_state, model(waveform())[:, -1], atol=1e-5)


def test_loudness_and_offset_of_the_sound_do_not_matter(folder: Path) -> None:
    model = opened(folder)
    with torch.no_grad():
        assert torch.allclose(model(waveform()), model(waveform() * 0.5 - 0.2), atol=1e-3)


def test_silence_has_states(folder: Path) -> None:
    with torch.no_grad():
        assert bool(opened(folder)(torch.zeros(1, 8000)).isfinite().all())


def test_sound_too_short_for_a_state_is_refused(folder: Path) -> None:
    with pytest.raises(RequestError, match="too few"):
        opened(folder)(torch.zeros(1, 399))


@pytest.mark.parametrize("samples", [400, 401, 719, 720, 16_000, 16_001])
def test_the_number_of_moments_is_told_beforehand(folder: Path, samples: int) -> None:
    with torch.no_grad():
        assert opened(folder)(torch.zeros(1, samples)).shape[2] == WAV2VEC2_LARGE_XLSR_53.num_moments(samples)


def test_heads_and_strides_are_the_released_ones_without_a_config(tmp_path: Path) -> None:
    config = Wav2Vec2Config(
        dim=128, ffn_dim=8, num_heads=2, num_layers=1, conv_dims=(4,) * 7, position_kernel=4, position_groups=4
    )
    save_file(config_weights(config), tmp_path / "model.safetensors")
    assert opened(tmp_path).config == config


def config_weights(config: Wav2Vec2Config) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in WAV2VEC2.build(config).state_dict().items()}


@pytest.mark.parametrize(
    ("file", "key", "value"),
    [
        ("config.json", "do_stable_layer_norm", False),
        ("config.json", "feat_extract_norm", "group"),
        ("config.json", "hidden_act", "relu"),
        ("preprocessor_config.json", "sampling_rate", 8000),
        ("preprocessor_config.json", "do_normalize", False),
    ],
)
def test_an_encoder_that_is_used_otherwise_is_refused_by_name(folder: Path, file: str, key: str, value: object) -> None:
    edit(folder / file, **{key: value})
    with pytest.raises(CheckpointError, match=key):
        opened(folder)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda tensors: tensors.pop("wav2vec2.encoder.layers.1.feed_forward.output_dense.weight"),
        lambda tensors: tensors.pop("wav2vec2.feature_extractor.conv_layers.0.conv.weight"),
        lambda tensors: tensors.pop("wav2vec2.encoder.pos_conv_embed.conv.weight_v"),
        lambda tensors: tensors.update({"wav2vec2.encoder.layer_norm.weight": torch.ones(3)}),
    ],
)
def test_weights_that_are_no_encoder_are_refused(folder: Path, spoil: Callable[[dict[str, Tensor]], object]) -> None:
    source = read_weights(folder)
    tensors = {name: source.read(name).clone() for name in source}
    spoil(tensors)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError):
        opened(folder)


def test_a_config_of_other_dims_is_refused(folder: Path) -> None:
    edit(folder / "config.json", num_attention_heads=3)
    with pytest.raises(CheckpointError, match="num_heads"):
        opened(folder)


@pytest.mark.parametrize("values", [{"conv_strides": (5, 2)}, {"num_heads": 3}, {"num_layers": 0}, {"conv_dims": ()}])
def test_impossible_dims_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        Wav2Vec2Config(**values)  # type: ignore[arg-type]


# -- states of video frames


def test_interpolation_keeps_both_ends() -> None:
    states = torch.arange(50.0).view(1, 50, 1)
    made = interpolate_states(states)
    assert made.shape == (1, num_interpolated(50), 1) == (1, 30, 1)
    assert (float(made[0, 0]), float(made[0, -1])) == (0.0, 49.0)


def test_a_whole_number_of_clips_has_one_more_of_silence() -> None:
    assert num_audio_clips(149, 80, 16) == 1
    assert num_audio_clips(150, 80, 16) == 2


def test_frames_have_the_nearest_states_and_then_silence() -> None:
    rows = frame_rows(40, 80, 16)
    assert rows[:5].tolist() == [0, 2, 4, 6, 8]  # 1.875, 3.75, 5.625 and 7.5, of two equally near the even one
    found = states_at(torch.ones(2, 40, 3), rows)
    assert found.shape == (80, 2, 3)
    assert int(found[:, 0, 0].sum()) == int((rows < 40).sum()) == 22


def test_neighbours_stay_within_the_states() -> None:
    states = torch.arange(4.0).view(1, 4, 1)
    assert states_at(states, torch.tensor([0, 3, 9]), reach=1).tolist() == [[[0, 0, 1]], [[2, 3, 3]], [[0, 0, 0]]]
