"""The video autoencoder as it is placed: constants, the order of weights, grey that is encoded once."""

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode

from wan_core import tasks
from wan_core.checkpoints import assign_tensor
from wan_core.errors import BackendError, RequestError
from wan_core.loading import RuntimeOptions, load_pipeline
from wan_core.media import LatentSpec, VideoGeometry
from wan_core.models import WAN21_VAE, WAN22_VAE, VAEConfig, VideoVAE
from wan_core.models.vae.tiling import Tiling
from wan_core.pipeline import Pipeline
from wan_core.runtime import HostCopy, Placed, prepare_model
from wan_core.tasks import (
    Components,
    Conditioning,
    GenerationRequest,
    encode_channels,
    first_frame_mask,
    first_frame_video,
)
from wan_core.tasks.flf2v import first_last_mask, first_last_video
from wan_core.tasks.i2v import I2VInputs, encode_grey_channels

from .networks import build

SMALL = VAEConfig(dim=4, z_dim=4, num_res_blocks=1, latents_mean=(0.1, 0.2, 0.3, 0.4), latents_std=(2.0, 0.7, 1.3, 1.1))
TWO_LEVELS = replace(SMALL, dim_mult=(1, 1), temporal_downsample=(True,))
CPU = torch.device("cpu")


class Calls(TorchFunctionMode):
    """Counts the functions of torch that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[func.__name__] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("tiling", [None, Tiling(tile_height=8, tile_width=8, stride_height=4, stride_width=4)])
@torch.inference_mode()
def test_a_decode_makes_no_constant_for_each_latent_frame(tiling: Tiling | None) -> None:
    vae = build(TWO_LEVELS)
    with Calls() as calls:
        vae.decode(torch.zeros(1, 4, 3, 6, 4), tiling=tiling)
    assert calls.counts["conv3d"] > 0
    assert calls.counts["tensor"] == 0  # there were two: mean and deviation


def test_latent_statistics_stay_float32_and_are_no_weights() -> None:
    vae = build(SMALL)
    moments = torch.arange(8.0).view(1, 8, 1, 1, 1)
    wanted = (moments[:, :4] - torch.tensor(SMALL.latents_mean).view(-1, 1, 1, 1)) * (
        1.0 / torch.tensor(SMALL.latents_std).view(-1, 1, 1, 1)
    )
    assert torch.equal(vae._normalise(moments), wanted)
    assert torch.equal(vae.to(torch.bfloat16)._normalise(moments), wanted)
    assert torch.equal(vae.to_empty(device="cpu")._normalise(moments), wanted)
    assert not {"latents_mean", "inverse_std"} & set(vae.state_dict())


@pytest.mark.slow  # the fake device takes seconds to import
def test_weights_lie_as_the_maps_do_where_a_gpu_would_copy_them_so() -> None:
    with FakeTensorMode(), torch.device("cuda"):
        vae = VideoVAE(TWO_LEVELS)
        prepare_model(vae, inference=True)
    convolutions = [weight for weight in vae.parameters() if weight.ndim == 5]
    assert len(convolutions) > 10
    assert all(weight.is_contiguous(memory_format=torch.channels_last_3d) for weight in convolutions)
    on_cpu = build(TWO_LEVELS)
    prepare_model(on_cpu, inference=True)
    assert all(weight.is_contiguous() for weight in on_cpu.parameters())


def test_weights_that_waited_in_host_memory_come_back_in_the_same_order() -> None:
    host, vae = HostCopy(CPU), build(SMALL)
    for name, weight in list(vae.named_parameters()):
        assign_tensor(vae, name, host.place(name, weight.detach()))
    host.bind(vae)
    name = "decoder.conv1.weight"
    laid = vae.get_parameter(name)
    laid.data = laid.data.contiguous(memory_format=torch.channels_last_3d)
    before, strides = laid.detach().clone(), laid.stride()
    host.leave()
    host.enter()
    assert vae.get_parameter(name).stride() == strides
    assert torch.equal(vae.get_parameter(name), before)
    assert vae.get_parameter("encoder.conv1.weight").is_contiguous()
    assert host.copied_down == 0


# Grey behind an image.

STRIDES = LatentSpec(channels=4, spatial_stride=8, temporal_stride=4, patch_size=(1, 2, 2))


class Encoding:
    """A small autoencoder among components that counts the frames that it encodes."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.vae, self.frames = VideoVAE(replace(SMALL, dim=2)).eval(), 0
        encode = self.vae.encode

        def counted(video: Tensor, **options: Any) -> Tensor:
            self.frames += video.shape[2]
            return encode(video, **options)

        self.vae.encode = counted  # type: ignore[method-assign]
        self.components = Components(device=CPU, parts={"vae": Placed(lambda _: self.vae, CPU)})


def test_grey_settles_where_the_kernels_of_the_encoder_reach_no_further() -> None:
    assert WAN21_VAE.settled_latents == WAN22_VAE.settled_latents == 30
    settled = SMALL.settled_latents
    torch.manual_seed(0)
    video = torch.zeros(1, 3, 1 + 4 * (settled + 1), 8, 8)
    video[:, :, 0] = torch.nan
    seen = VideoVAE(SMALL).encode(video).isnan().any(dim=1).flatten()
    assert seen.tolist() == [True] * (settled - 1) + [False] * 3


@pytest.mark.parametrize("ends", [False, True], ids=["first", "first and last"])
@torch.inference_mode()
def test_grey_that_has_settled_is_not_encoded_and_the_latents_are_the_same(ends: bool) -> None:
    made, settled = Encoding(), SMALL.settled_latents
    geometry = VideoGeometry.for_video(STRIDES, num_frames=1 + 4 * (settled + 4), height=16, width=16)
    image, last = torch.rand(2, 3, 16, 16)

    def draw(part: VideoGeometry) -> Tensor:
        return first_last_video(image, last, part) if ends else first_frame_video(image, part)

    mask = first_last_mask(geometry) if ends else first_frame_mask(geometry)
    whole = encode_channels(draw(geometry), mask, made.components)
    assert made.frames == geometry.num_frames
    short = encode_grey_channels(draw, mask, geometry, made.components, end=int(ends))
    assert torch.equal(short, whole)
    assert made.frames - geometry.num_frames == 1 + 4 * (settled - 1 + ends)


@torch.inference_mode()
def test_several_videos_of_one_image_encode_it_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wan_core.tasks.i2v.text_states", lambda *_: (torch.zeros(1, 1, 4), None))
    made, task = Encoding(), tasks.ImageToVideo()
    geometry = VideoGeometry.for_video(STRIDES, num_frames=5, height=16, width=16)
    image = torch.rand(3, 20, 20)
    inputs = I2VInputs(request=None, settings=None, geometry=geometry, image=image)  # type: ignore[arg-type]
    channels = [task.condition(inputs, made.components, tasks.Clip()).positive.channel_concat for _ in range(3)]
    assert made.frames == 5
    assert channels[0] is channels[2]
    for other in (replace(inputs, image=image + 0.1), replace(inputs, geometry=replace(geometry, num_frames=9))):
        task.condition(other, made.components, tasks.Clip())
    assert made.frames == 5 + 5 + 9


# Dtype and tiles of a run.


def tiny(**options: Any) -> Pipeline:
    return load_pipeline("tiny-t2v", options=RuntimeOptions(device="cpu", **options))


def test_the_autoencoder_is_float32_unless_another_dtype_is_named_and_the_record_says_so() -> None:
    for asked, dtype in (("auto", torch.float32), ("bfloat16", torch.bfloat16)):
        pipeline = tiny(vae_dtype=asked, dtype="bfloat16" if asked == "auto" else "float32")
        assert {weight.dtype for weight in pipeline.components.vae.module().parameters()} == {dtype}
        assert pipeline._record.get("vae_dtype") == (None if asked == "auto" else asked)
    with pytest.raises(RequestError, match="vae-dtype must be auto, float32, bfloat16 or float16, got 'int8'"):
        tiny(vae_dtype="int8")
    with pytest.raises(RequestError, match="vae-tiling must be auto, on, off, encode, decode, got 'often'"):
        tiny(vae_tiling="often")


@torch.inference_mode()
def test_a_run_that_is_tiled_gives_the_frames_of_tiled_decode_and_its_record_says_so() -> None:
    pipeline = tiny(vae_tiling="on")
    inputs = pipeline.plan(GenerationRequest(prompt="p", num_frames=5, width=288, height=256, seed=1))
    conditioning = Conditioning(positive=None, negative=None, latent_shape=())  # type: ignore[arg-type]
    vae = pipeline.components.vae.module()
    stride = vae.config.spatial_stride
    latents = torch.randn(1, vae.config.z_dim, 2, 8, 8 + 256 // stride, generator=torch.Generator().manual_seed(0))
    frames = list(pipeline.decode(latents, conditioning))
    assert sum(chunk.shape[2] for chunk in frames) == 5
    tiled = plain_vae().decode(latents, tiling=Tiling())
    assert torch.equal(torch.cat(frames, dim=2), tiled)
    assert not torch.equal(tiled, plain_vae().decode(latents))
    assert pipeline.provenance(inputs).record["vae_tiling"] == ["decode", "encode"]


def plain_vae() -> VideoVAE:
    vae: VideoVAE = tiny().components.vae.module()
    return vae


def test_float16_that_overflows_is_refused() -> None:
    pipeline = tiny(vae_dtype="float16")
    vae = pipeline.components.vae.module()
    vae.stream_decode = lambda *_, **__: iter([torch.full((1, 3, 1, 8, 8), torch.nan)])  # type: ignore[method-assign]
    conditioning = Conditioning(positive=None, negative=None, latent_shape=())  # type: ignore[arg-type]
    with pytest.raises(BackendError, match="beyond the range of float16; take --vae-dtype bfloat16 or float32"):
        list(pipeline.decode(torch.zeros(1, vae.config.z_dim, 1, 1, 1), conditioning))
