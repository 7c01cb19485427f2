from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from tools.tiny import delta_stage, dit_stage, family, vae_stage
from tools.tiny.dit_stage import (
    HARD_SHAPES,
    DiTStage,
    PlainAttention,
    combination_of,
    first_frame_channels,
    latent_cache,
    new_dit,
    text_states,
    use_plain_attention,
)
from tools.tiny.scores import held_back_clips, score_vae
from tools.tiny.text_stage import ATTRIBUTE_SIZES, TextStage
from tools.tiny.world import training_clip
from wan_core.models import DiTInputs, InnerAttention, VideoVAE, WanDiT
from wan_core.training import Cache, NoiseLevels, build_optimizers, write_cache

CHANNELS = family.GEOMETRY.spec.channels


def small_dit() -> WanDiT:
    dit = new_dit(replace(family.DIT, num_layers=1))
    use_plain_attention(dit)
    return dit


def test_pixels_survive_the_way_to_tensors_and_back() -> None:
    video = training_clip(3).video
    np.testing.assert_array_equal(vae_stage.to_video(vae_stage.to_pixels([video])[0]), video)


def test_pixel_blocks_hold_each_pixel_once_and_the_first_frame_four_times() -> None:
    pixels = torch.arange(2 * 3 * 9 * 16 * 8, dtype=torch.float32).view(2, 3, 9, 16, 8)
    blocks = vae_stage.pixel_blocks(pixels)
    assert blocks.shape == (2, 3, 2, 1, 768)
    torch.testing.assert_close(blocks[:, 1:].flatten().sort().values, pixels[:, :, 1:].flatten().sort().values)
    assert set(blocks[0, 0, 0, 0].tolist()) == set(pixels[0, :, 0, :8].flatten().tolist())


def test_training_batches_depend_on_the_step_only() -> None:
    assert torch.equal(vae_stage.draw_batch(5), vae_stage.draw_batch(5))
    lengths = {vae_stage.draw_batch(step).shape[2] for step in range(12)}
    assert lengths <= set(vae_stage.LENGTHS)
    assert len(lengths) > 1


def test_a_small_figure_counts_as_much_as_the_background() -> None:
    pixels = torch.full((1, 3, 1, 32, 32), -1.0)
    pixels[..., 14:18, 14:18] = 1.0
    inside, outside = pixels.clone(), pixels.clone()
    inside[..., 13:19, 13:19] += 0.5
    figure = torch.zeros_like(pixels, dtype=torch.bool)
    figure[..., 13:19, 13:19] = True
    outside = torch.where(figure, pixels, pixels + 0.5)
    torch.testing.assert_close(
        vae_stage.reconstruction_loss(pixels, inside), vae_stage.reconstruction_loss(pixels, outside), rtol=0.05, atol=0
    )


def test_folded_statistics_standardise_latents_and_keep_the_picture() -> None:
    torch.manual_seed(0)
    vae = VideoVAE(family.VAE)
    vae.reset_parameters(1)
    pixels = vae_stage.to_pixels([training_clip(seed).video for seed in range(4)])
    with torch.no_grad():
        before = vae.decode(vae.encode(pixels))
        vae_stage.fold_statistics(vae, clips=4)
        latents = vae.encode(pixels)
        torch.testing.assert_close(vae.decode(latents), before, atol=1e-4, rtol=0)
    rows = latents.transpose(0, 1).flatten(1)
    torch.testing.assert_close(rows.mean(1), torch.zeros(CHANNELS), atol=1e-3, rtol=0)
    torch.testing.assert_close(rows.std(1), torch.ones(CHANNELS), atol=1e-2, rtol=0)


def test_the_bundled_autoencoder_passes_its_milestone() -> None:
    vae, _ = family.load_frozen()
    report = score_vae(vae_stage.reconstructor(vae), held_back_clips(6))
    assert report["psnr"] >= 28.0
    assert report["all"] == 100.0


def test_every_token_of_a_caption_tells_all_attributes() -> None:
    _, encoder = family.load_frozen()
    stage = TextStage(encoder.model)
    with torch.no_grad():
        states, labels = stage.states(np.random.default_rng(1), 200, held_back=False)
        start = 0
        for column, size in enumerate(ATTRIBUTE_SIZES):
            wanted = torch.nn.functional.one_hot(labels[:, column], size).float()
            solution = torch.linalg.lstsq(states, wanted).solution
            stage.heads.weight[start : start + size] = solution.T
            start += size
        stage.heads.bias.zero_()
    assert min(stage.accuracy(100).values()) >= 99.0


def test_plain_attention_is_attention() -> None:
    query, key, value = torch.randn(2, 5, 3, 8), torch.randn(2, 7, 3, 8), torch.randn(2, 7, 3, 8)
    torch.testing.assert_close(PlainAttention()(query, key, value), InnerAttention()(query, key, value))


def random_latents(folder: Path, count: int, frames: int) -> Cache:
    generator = torch.Generator().manual_seed(0)
    shape = (CHANNELS, frames, 8, 8)
    return Cache(write_cache(folder, count, lambda _: {"latents": torch.randn(shape, generator=generator)}, {}))


def test_a_dit_step_lowers_its_loss(tmp_path) -> None:
    _, encoder = family.load_frozen()
    clips = random_latents(tmp_path, 100, 5)
    dit = small_dit()
    stage = DiTStage(dit, encoder, clips, NoiseLevels(), torch.ones(CHANNELS), clean_share=0.5, batch=4)
    losses = []
    for _ in range(4):
        torch.manual_seed(0)
        loss = stage.loss(0, 0)
        losses.append(loss.item())
        loss.backward()
        for optimizer in build_optimizers(dit, "muon", 0.02):
            optimizer.step()
            optimizer.zero_grad()
    assert losses[-1] < losses[0]


def test_hard_shapes_are_seen_more_often_and_stills_teach_too(tmp_path) -> None:
    _, encoder = family.load_frozen()
    stills = random_latents(tmp_path, 200, 1)
    stage = DiTStage(
        small_dit(), encoder, stills, NoiseLevels(), torch.ones(CHANNELS), stills=stills, shares=HARD_SHAPES
    )
    assert 1.8 < stage.loss(0, 1).item() < 2.2, "a silent head misses noise and latents of variance one each"
    drawn = [combination_of(index).shape for index in stage._draw(np.random.default_rng(0), 200, 400)]
    plain = [combination_of(index).shape for index in range(200)]
    assert drawn.count("cross") / 400 > 1.3 * plain.count("cross") / 200
    assert 0 < drawn.count("circle") / 400 < 0.7 * plain.count("circle") / 200


def test_the_caches_hold_what_the_losses_read(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(dit_stage, "COUNTS", dict.fromkeys(dit_stage.COUNTS, 2))
    monkeypatch.setattr(dit_stage, "IMAGE_CLIPS", 1)
    vae, encoder = family.load_frozen()
    clips, stills, channels = (latent_cache(tmp_path, kind, vae) for kind in ("clips", "stills", "channels"))
    assert clips[0]["images"].shape == (CHANNELS, 4, 8, 8)
    assert "images" not in clips[1]
    assert stills[0]["latents"].shape == (CHANNELS, 1, 8, 8)
    torch.testing.assert_close(stills[0]["latents"], clips[0]["latents"][:, :1], atol=2e-3, rtol=0)
    assert channels[0]["channels"].shape == (CHANNELS + 4, 5, 8, 8)
    torch.testing.assert_close(channels[0]["channels"][4:, :1], clips[0]["latents"][:, :1], atol=2e-3, rtol=0)
    dit = new_dit(replace(family.I2V, num_layers=1))
    use_plain_attention(dit)
    stage = DiTStage(dit, encoder, channels, NoiseLevels(), torch.ones(CHANNELS), batch=2)
    assert stage.loss(0, 0).isfinite()


def test_prompts_of_any_length_fit() -> None:
    _, encoder = family.load_frozen()
    states = text_states(encoder, ["", "red " * 100])
    assert states.shape == (2, family.DIT.text_len, family.TEXT.dim)
    assert (states[0, 1:] == 0).all()


def test_a_change_starts_as_its_base_and_is_small() -> None:
    base = small_dit()
    torch.nn.init.normal_(base.head.head.weight)
    wide = delta_stage.build(replace(family.I2V, num_layers=1), base)
    use_plain_attention(wide)
    latents, image = torch.randn(1, CHANNELS, 5, 8, 8), torch.randn(3, 64, 64)
    context = torch.randn(1, 3, family.TEXT.dim)
    plain = base(latents, torch.tensor([500.0]), DiTInputs(context=context))
    channels = first_frame_channels(family.load_bundled("vae"), image)
    inputs = DiTInputs(context=context, channel_concat=channels[None])
    torch.testing.assert_close(wide(latents, torch.tensor([500.0]), inputs), plain)
    change = delta_stage.tensors(wide)
    assert sum(t.numel() for t in change.values()) < 0.35 * sum(p.numel() for p in base.parameters())
    assert {"patch_embedding.weight", "patch_embedding.bias"} <= set(change)
