"""Processes of one video decode its tiles together, and the first one has the bits that one alone would have."""

import copy
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

from wan_core.memory import RunFacts
from wan_core.models import DecoderCache, DiTInputs, Tiling, VideoVAE
from wan_core.pipeline import Pipeline
from wan_core.presets import get_preset
from wan_core.runtime import Placed, Together
from wan_core.tasks import Components, Conditioning, DecodePlan

from .processes import run_together
from .threads import run_video_in_threads

CPU = torch.device("cpu")
SMALL = Tiling(tile_height=16, tile_width=16, stride_height=8, stride_width=16)


@cache
def small_vae() -> VideoVAE:
    vae = VideoVAE(get_preset("tiny-t2v").vae).eval()
    torch.manual_seed(0)
    for weight in vae.parameters():
        torch.nn.init.normal_(weight, std=0.1)
    return vae


def some_latents(vae: VideoVAE) -> Tensor:
    return torch.randn(1, vae.config.z_dim, 3, 3, 4, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("world", [2, 5])
@pytest.mark.parametrize("in_parts", [False, True], ids=["whole", "in parts"])
def test_tiles_that_are_shared_are_put_together_as_one_process_does(
    world: int, in_parts: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    vae = small_vae()
    latents = some_latents(vae)

    def decoded(tiling: Tiling) -> Tensor:
        if not in_parts:
            return vae.decode(latents, tiling=tiling)
        cache = DecoderCache()
        return torch.cat([vae.decode_chunk(each, cache, tiling=tiling) for each in latents.split([1, 2], dim=2)], 2)

    def together(processes: Together) -> tuple[Tensor, int]:
        done = 0

        def counted(work: Sequence[Callable[[], Tensor]]) -> Iterator[Tensor]:
            def one(piece: Callable[[], Tensor]) -> Tensor:
                nonlocal done
                done += 1
                return piece()

            return processes.share_work([lambda piece=piece: one(piece) for piece in work])  # type: ignore[misc]

        return decoded(replace(SMALL, share=counted)), done

    with torch.no_grad():
        wanted = decoded(SMALL)
    found = run_video_in_threads(world, together, monkeypatch)
    (first, _), others = found[0][0], [each for (each, _), _ in found[1:]]
    assert torch.equal(first, wanted)
    assert all(each.shape == (1, 3, wanted.shape[2], 0, 0) for each in others), "frames are counted everywhere"
    done, turns = [count for (_, count), _ in found], 2 if in_parts else 1
    assert sum(done) == 3 * 2 * turns, "every tile is decoded once"
    assert max(done) - min(done) <= turns, "by as many as there are"
    assert [sent["send"] for _, sent in found] == [0, *done[1:]]


def test_all_processes_decode_until_as_many_frames_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    preset, vae = get_preset("tiny-t2v"), small_vae()
    latents = torch.randn(1, preset.vae.z_dim, 4, 1, 33, generator=torch.Generator().manual_seed(1))  # two tiles

    def frames(together: Together | None) -> Tensor:
        parts = {"vae": Placed(lambda _: copy.deepcopy(vae), CPU)}
        pipeline = Pipeline(
            preset,
            Components(device=CPU, parts=parts),
            latent_spec=preset.latent_spec,
            together=together,
            run=RunFacts(preset=preset, dtype=torch.float32, tiling=frozenset({"encode", "decode"})),
        )
        kept = DecodePlan(drop_frames=2, keep_frames=6, cache=DecoderCache())
        given = Conditioning(
            positive=DiTInputs(context=latents), negative=None, latent_shape=tuple(latents.shape), decode=kept
        )
        return torch.cat(list(pipeline.decode(latents, given)), dim=2)

    with torch.no_grad():
        wanted = frames(None)
    (first, _), (other, _) = run_video_in_threads(2, frames, monkeypatch)
    assert wanted.shape == (1, 3, 6, 8, 264)
    assert torch.equal(first, wanted)
    assert other.shape == (1, 3, 6, 0, 0)


CASES = {
    2: ["t2v:cfg", "t2v:cfg:small", "s2v:cfg", "sfu:sequence=2"],
    4: ["t2v:sequence=2+cfg", "sfu:sequence=4"],
}


@pytest.mark.slow
@pytest.mark.parametrize("world", CASES)
def test_processes_decode_together_what_one_decodes(world: int, tmp_path: Path) -> None:
    status, said = run_together(world, Path(__file__).with_name("decode_worker.py"), tmp_path, *CASES[world])
    assert status == 0, said[-3000:]
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(world)]
    for case in CASES[world]:
        first, *others = rows = [row[case] for row in found]
        assert all(each["is_equal"] for each in rows), case
        assert (first["frames"], {each["frames"] for each in others}) == (first["wanted_frames"], {0}), case
        assert sum(each["runs"] for each in rows) == first["all_runs"], "no tile is decoded twice"
        sharing = [each["runs"] > 0 for each in rows]
        # 40 pixels of height are one row of two tiles.
        assert sharing == [True, not case.endswith("small"), *[False] * (world - 2)], case
        assert all(each["loads"] for each in rows[: sum(sharing)])
