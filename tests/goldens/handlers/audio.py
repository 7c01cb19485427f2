"""The states of a speech encoder, and those of video frames."""

import torch
from torch import Tensor

from tests.goldens.harness import GoldenCase, finished, handles
from wan_core.models import (
    Wav2Vec2,
    Wav2Vec2Config,
    frame_rows,
    interpolate_states,
    num_audio_clips,
    states_at,
)
from wan_core.models.audio.frames import strided_rows
from wan_core.models.audio.wav2vec2 import normalised


@handles("s2v_audio_bucket")
def audio_bucket(case: GoldenCase) -> dict[str, Tensor]:
    computed: dict[str, Tensor] = {}
    rate = case.config["video_rate"]
    for index, call in enumerate(case.call.get("fps_cases", ())):
        states = case.inputs[f"{index}.features"]
        known = states.shape[1], call["batch_frames"], call["fps"], rate
        rows = frame_rows(*known)
        found = states_at(states, rows, reach=call["m"], step=int(rate / call["fps"]))
        computed[f"out.{index}.indices"] = rows
        computed[f"out.{index}.num_clips"] = torch.tensor([num_audio_clips(*known)])
        computed[f"out.{index}.bucket"] = found[:, 0] if len(states) == 1 else found
    call = case.call.get("stride_case")
    if call is not None:
        states = case.inputs["stride.features"]
        rows = strided_rows(states.shape[1], call["batch_frames"], call["stride"])
        found = states_at(states, rows, reach=call["m"], step=2)
        computed["out.stride.bucket"] = found[:, 0] if len(states) == 1 else found
        computed["out.stride.num_clips"] = torch.tensor([len(rows) // call["batch_frames"]])
    for name, states in case.named("in.interp").items():
        index = name.partition(".")[0]
        rates = case.call["interp"]["input_fps"], case.call["interp"]["output_fps"]
        computed[f"out.interp{index}"] = interpolate_states(states, *rates)
    return computed


@handles("s2v_wav2vec")
def wav2vec(case: GoldenCase) -> dict[str, Tensor]:
    config = case.config
    unusual = {"feat_extract_norm": "layer", "do_stable_layer_norm": True}
    differing = {key: config[key] for key, usual in unusual.items() if config.get(key, usual) != usual}
    if differing:
        raise ValueError(f"the speech encoder has no variant {differing}")
    model = Wav2Vec2(
        Wav2Vec2Config(
            dim=config["hidden_size"],
            ffn_dim=config["intermediate_size"],
            num_heads=config["num_attention_heads"],
            num_layers=config["num_hidden_layers"],
            conv_dims=config["conv_dim"],
            conv_kernels=config["conv_kernel"],
            conv_strides=config["conv_stride"],
            conv_bias=config["conv_bias"],
            position_kernel=config["num_conv_pos_embeddings"],
            position_groups=config["num_conv_pos_embedding_groups"],
        )
    )
    beside = ("lm_head.", "wav2vec2.masked_spec_embed")
    model.load_state_dict(
        {name.removeprefix("wav2vec2."): value for name, value in case.weights.items() if not name.startswith(beside)}
    )
    samples = normalised(case.inputs["waveform"][None])
    # The golden is of transformers 5, whose last states are not normed; our forward norms them, as S2V was trained.
    states = finished(model).hidden_states(samples)[0]
    return {"mid.input_values": samples, "mid.hidden_states": states, "out.features": interpolate_states(states)}
