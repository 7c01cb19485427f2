"""Size rules and the mask of a fixed first frame."""

from collections.abc import Mapping

import torch
from torch import Tensor

from tests.goldens.harness import GoldenCase, handles
from wan_core.animate.face import face_box
from wan_core.animate.frames import frame_indices
from wan_core.animate.resize import size_of_area
from wan_core.errors import RequestError
from wan_core.media import LatentSpec, best_output_size, latent_grid_for_area, padded_size_within
from wan_core.sampling import Anchors
from wan_core.tasks.segments import extended_length, known_channels, mirrored


def output_sizes(rows: Tensor) -> Tensor:
    """[N, 5] rows (w, h, dw, dh, area) -> [N, 2]; -1, -1 where we refuse, as the tables mark it."""
    sizes = []
    for width, height, width_multiple, height_multiple, area in rows.tolist():
        try:
            sizes.append(tuple(best_output_size(width, height, width_multiple, height_multiple, area)))
        except RequestError:
            sizes.append((-1, -1))
    return torch.tensor(sizes, dtype=torch.int64)


@handles("wan_best_output_size")
def best_output_size_table(case: GoldenCase) -> Mapping[str, Tensor]:
    return {"out.ow_oh": output_sizes(case.inputs["w_h_dw_dh_area"])}


# name: (latent frames, whether the golden's pixels say what is known, known frames).
_MASKS = {
    "first": (3, False, 0), "cont1": (3, False, 1), "cont5": (3, False, 5), "ref": (1, False, 1),
    "replace_first": (3, True, 0), "replace_cont5": (3, True, 5),
}  # fmt: skip


@handles("animate_s2v_helpers")
def sizes_masks_and_places(case: GoldenCase) -> Mapping[str, Tensor]:
    sizes = [padded_size_within(width, height, area) for height, width, area in case.inputs["s2v_size_hwa"].tolist()]
    areas = [size_of_area(width, height, area) for height, width, area in case.inputs["animate_area_hwa"].tolist()]
    found = {
        "out.s2v_size_hw": torch.tensor([(size.height, size.width) for size in sizes], dtype=torch.int64),
        "out.animate_area_wh": torch.tensor(areas, dtype=torch.int64),
    }
    for index, call in enumerate(case.call["frame_indices"]):
        found[f"out.frame_indices.{index}"] = torch.from_numpy(frame_indices(*call))
    for name in (name for name in case.inputs if name.startswith("face_kp") and not name.endswith(".hw")):
        size = case.inputs[f"{name}.hw"].tolist()
        box = face_box(case.inputs[name].numpy(), *size, case.call["face_scale"])
        sides = (box.left, box.right, box.top, box.bottom) if box else (0, 0, 0, 0)
        found[f"out.{name.replace('face_kp', 'face_box')}"] = torch.tensor(sides, dtype=torch.int64)
    lengths = [extended_length(*row) for row in case.inputs["valid_len"].tolist()]
    found["out.valid_len"] = torch.tensor(lengths, dtype=torch.int64)
    for index, (count, target) in enumerate(case.inputs["pingpong"].tolist()):
        shown = [mirrored(at, count) for at in range(target)]
        found[f"out.pingpong.{index}"] = torch.tensor(shown, dtype=torch.int64)
    pixels = case.inputs["i2v_mask.pixels"]
    for name, (frames, is_given, known) in _MASKS.items():
        shown = pixels if is_given else torch.zeros_like(pixels[:, : 4 * frames - 3])
        found[f"out.i2v_mask.{name}"] = known_channels(shown, known)[0]
    return found


@handles("geometry")
def geometry(case: GoldenCase) -> Mapping[str, Tensor]:
    spec = LatentSpec(channels=16)
    grids = [latent_grid_for_area(h, w, area, spec) for w, h, area in case.inputs["i2v_latent_grid"].tolist()]
    computed = {
        "out.best_output_size": output_sizes(case.inputs["best_output_size"]),
        "out.i2v_latent_grid": torch.tensor(grids, dtype=torch.int64),
    }
    for name, mask in case.named("out.masks_like_zero.").items():
        channels, frames, height, width = mask.shape
        anchors = Anchors.leading(torch.zeros(1, channels, 1, height, width), frames)
        noise_share = anchors.apply(torch.ones(1, channels, frames, height, width))
        computed[f"out.masks_like_zero.{name}"] = noise_share[0]
    return computed
