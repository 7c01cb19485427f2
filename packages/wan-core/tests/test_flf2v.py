"""First and last frame: the network's one further tensor, and what it is shown."""

import torch
from PIL import Image

from wan_core.media import LatentSpec, VideoGeometry
from wan_core.models import DiTInputs, FLF2VConfig, FLF2VDiT, WanDiT, WanDiTConfig
from wan_core.presets import get_preset
from wan_core.tasks.flf2v import _with_aspect_of, first_last_mask, first_last_video

SPEC = LatentSpec(channels=16, temporal_stride=4, spatial_stride=8, patch_size=(1, 2, 2))
GEOMETRY = VideoGeometry.for_video(SPEC, num_frames=9, height=32, width=48)
SMALL = FLF2VConfig(
    dim=24, ffn_dim=32, num_heads=2, num_layers=1, freq_dim=8, text_dim=6, text_len=4, image_dim=8, image_tokens=6
)


def test_the_released_network_is_image_to_video_with_one_more_tensor() -> None:
    with torch.device("meta"):
        ours = FLF2VDiT(get_preset("flf2v-14B").dit).state_dict()
        base = WanDiT(get_preset("i2v-14B-720P").dit).state_dict()
    assert ours.keys() - base.keys() == {"img_emb.emb_pos"}
    assert tuple(ours["img_emb.emb_pos"].shape) == (1, 514, 1280)
    assert all(ours[name].shape == tensor.shape for name, tensor in base.items())


def test_the_position_tells_the_images_apart() -> None:
    torch.manual_seed(0)
    network = FLF2VDiT(SMALL).eval()
    torch.nn.init.normal_(network.head.head.weight)
    latents, states = torch.randn(1, 36, 2, 4, 4), torch.randn(1, 3, 8)

    def velocity(first: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
        inputs = DiTInputs(context=torch.ones(1, 4, 6), image_context=torch.cat([first, last], dim=1))
        with torch.no_grad():
            return network(latents, torch.tensor([500.0]), inputs)

    torch.testing.assert_close(velocity(states, -states), velocity(-states, states))  # attention knows no order
    torch.nn.init.normal_(network.img_emb.emb_pos)
    assert (velocity(states, -states) - velocity(-states, states)).abs().max() > 1e-4


def test_without_the_position_it_is_image_to_video() -> None:
    assert isinstance(SMALL, WanDiTConfig)
    torch.manual_seed(0)
    network, plain = FLF2VDiT(SMALL).eval(), WanDiT(WanDiTConfig(**SMALL.__dict__)).eval()
    state = network.state_dict()
    del state["img_emb.emb_pos"]  # zero, as it starts
    plain.load_state_dict(state)
    inputs = DiTInputs(context=torch.ones(1, 4, 6), image_context=torch.randn(1, 6, 8))
    latents = torch.randn(1, 36, 2, 4, 4)
    with torch.no_grad():
        assert torch.equal(*(each(latents, torch.tensor([500.0]), inputs) for each in (network, plain)))


def test_the_mask_gives_the_first_and_the_last_pixel_frame() -> None:
    mask = first_last_mask(GEOMETRY)
    assert tuple(mask.shape) == (1, 4, 3, 4, 6)
    rows = mask[0, :, :, 0, 0].T.flatten()  # the channels of each latent frame: its pixel frames
    assert rows.tolist() == [1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 1]
    assert torch.equal(mask, mask[..., :1, :1].expand_as(mask))


def test_the_ends_of_the_encoded_video_are_the_images() -> None:
    video = first_last_video(torch.full((3, 10, 15), 0.5), torch.full((3, 64, 96), -0.5), GEOMETRY)
    assert tuple(video.shape) == (1, 3, 9, 32, 48)
    torch.testing.assert_close(video[0, 0, :, 5, 5], torch.tensor([0.5, 0, 0, 0, 0, 0, 0, 0, -0.5]))


def test_the_last_image_is_cut_to_the_shape_of_the_first_and_never_scaled() -> None:
    first = Image.new("RGB", (100, 50))
    assert _with_aspect_of(first, Image.new("RGB", (200, 100)))[1] == ()
    cut, (note,) = _with_aspect_of(first, Image.new("RGB", (80, 80)))
    assert cut.size == (80, 40)
    assert "80x40 of its 80x80" in note
