from dataclasses import replace

import numpy as np
import torch
from safetensors.torch import save_file

from tools.tiny import delta_stage, dit_stage, family, train, vae_stage
from tools.tiny.dit_stage import (
    HARD_SHAPES,
    DiTStage,
    LatentCache,
    PlainAttention,
    dit_optimizers,
    first_frame_channels,
    start_weights,
    text_states,
    use_plain_attention,
)
from tools.tiny.evaluate import held_back_clips, score_vae
from tools.tiny.text_stage import ATTRIBUTE_SIZES, TextStage
from tools.tiny.world import training_clip
from wan_core.models import DiTInputs, InnerAttention, VideoVAE, WanDiT
from wan_core.training import NoiseLevels


def small_dit(in_dim: int = family.Z_DIM) -> WanDiT:
    dit = WanDiT(replace(family.DIT, num_layers=1, in_dim=in_dim))
    start_weights(dit)
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
    torch.testing.assert_close(rows.mean(1), torch.zeros(family.Z_DIM), atol=1e-3, rtol=0)
    torch.testing.assert_close(rows.std(1), torch.ones(family.Z_DIM), atol=1e-2, rtol=0)


def test_the_bundled_autoencoder_passes_its_milestone() -> None:
    vae, _ = train.load_frozen()
    report = score_vae(vae_stage.reconstructor(vae), held_back_clips(6))
    assert report["psnr"] >= 28.0
    assert report["all"] == 100.0


def test_every_token_of_a_caption_tells_all_attributes() -> None:
    _, encoder = train.load_frozen()
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


def test_a_dit_step_lowers_its_loss(tmp_path) -> None:
    vae, encoder = train.load_frozen()
    cache = LatentCache(tmp_path, vae)
    cache._shards[("clips", 0)] = torch.randn(100, family.Z_DIM, 5, 8, 8)
    dit = small_dit()
    stage = DiTStage(
        dit, encoder, cache, NoiseLevels(), torch.ones(family.Z_DIM), 0.5, batch=4, clips=100, first_clips=100
    )
    losses = []
    for _ in range(4):
        torch.manual_seed(0)
        loss = stage.loss(0, 0)
        losses.append(loss.item())
        loss.backward()
        for optimizer in dit_optimizers(dit):
            optimizer.step()
            optimizer.zero_grad()
    assert losses[-1] < losses[0]


def test_hard_shapes_are_seen_more_often_and_stills_teach_too(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(dit_stage, "STILLS", 200)
    vae, encoder = train.load_frozen()
    cache = LatentCache(tmp_path, vae)
    for number in range(2):
        cache._shards[("stills", number)] = torch.randn(100, family.Z_DIM, 1, 8, 8)
    stage = DiTStage(small_dit(), encoder, cache, NoiseLevels(), torch.ones(family.Z_DIM), shares=HARD_SHAPES)
    assert 1.8 < stage.loss(0, 1).item() < 2.2, "a silent head misses noise and latents of variance one each"
    drawn = [cache.combination(index).shape for index in stage._draw(np.random.default_rng(0), 200, 400)]
    plain = [cache.combination(index).shape for index in range(200)]
    assert drawn.count("cross") / 400 > 1.3 * plain.count("cross") / 200
    assert 0 < drawn.count("circle") / 400 < 0.7 * plain.count("circle") / 200


def test_latents_are_cached_once(tmp_path) -> None:
    class Counting:
        calls = 0

        def encode(self, pixels: torch.Tensor, **_: object) -> torch.Tensor:
            Counting.calls += 1
            return pixels[:, :1, ::4, ::8, ::8].repeat(1, family.Z_DIM, 1, 1, 1)

    first = LatentCache(tmp_path, Counting()).rows([1, 99])
    assert Counting.calls == 25
    assert torch.equal(LatentCache(tmp_path, Counting()).rows([1, 99]), first)
    assert Counting.calls == 25


def test_prompts_of_any_length_fit() -> None:
    _, encoder = train.load_frozen()
    states = text_states(encoder, ["", "red " * 100])
    assert states.shape == (2, family.TEXT_LEN, family.TEXT.dim)
    assert (states[0, 1:] == 0).all()


def test_a_change_starts_as_its_base_and_is_small(tmp_path) -> None:
    base = small_dit()
    torch.nn.init.normal_(base.head.head.weight)
    (tmp_path / "base").mkdir()
    save_file(base.state_dict(), tmp_path / "base" / "model.safetensors")
    wide = delta_stage.build(tmp_path / "base", replace(family.I2V, num_layers=1))
    use_plain_attention(wide)
    latents, condition = torch.randn(1, family.Z_DIM, 5, 8, 8), torch.randn(1, family.Z_DIM, 5, 8, 8)
    context = torch.randn(1, 3, family.TEXT.dim)
    plain = base(latents, torch.tensor([500.0]), DiTInputs(context=context))
    inputs = DiTInputs(context=context, channel_concat=first_frame_channels(condition))
    torch.testing.assert_close(wide(latents, torch.tensor([500.0]), inputs), plain)
    change = delta_stage.tensors(wide)
    assert sum(t.numel() for t in change.values()) < 0.35 * sum(p.numel() for p in base.parameters())
    assert {"patch_embedding.weight", "patch_embedding.bias"} <= set(change)
