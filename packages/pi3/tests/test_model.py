"""The network as a whole, on tiny dims: names, symmetry, halves, influence of every weight, memory."""

import hashlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pi3 import Conditions, Pi3, Pi3Config, Pi3XConfig
from pi3.model import in_chunks
from wan_core.errors import ConfigError, RequestError

# The list "name shape" of every tensor of yyfz233/Pi3 and yyfz233/Pi3X, sorted by name, hashed.
PUBLISHED = {
    Pi3Config: (1210, 958_696_738, "c4d74632e24ba6166cd23bd16725de9c2ce99c7de56630e3b817d33f841668f1"),
    Pi3XConfig: (1873, 1_360_032_439, "88c6a6c5f1c12161cd5a1838af43b6a4072d04fcf38d5ecbf30803e4bfafa355"),
}


@pytest.fixture
def images() -> Tensor:
    return torch.rand(2, 3, 3, 28, 42, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("config", PUBLISHED)
def test_names_and_shapes_are_the_published_ones(config: type[Pi3Config]) -> None:
    with torch.device("meta"):
        state = config().build().state_dict()
    listing = "\n".join(f"{name} {list(tensor.shape)}" for name, tensor in sorted(state.items()))
    count = sum(tensor.numel() for tensor in state.values())
    assert (len(state), count, hashlib.sha256(listing.encode()).hexdigest()) == PUBLISHED[config]


@torch.no_grad()
def test_halves_make_the_whole(model: Pi3, images: Tensor) -> None:
    latents = model.encode(images)
    whole, halves = model(images), model.decode(latents)
    assert all(torch.equal(vars(whole)[name], vars(halves)[name]) for name in vars(whole))
    assert latents.hidden.shape == (6, 5 + 6, 64)
    assert latents.patch_hidden.shape == (2, 3, 6, 64)
    assert latents.positions[0].tolist() == [[0, 0]] * 5 + [[1, 1], [1, 2], [1, 3], [2, 1], [2, 2], [2, 3]]


@torch.no_grad()
def test_permuted_views_give_permuted_results(model: Pi3, images: Tensor) -> None:
    order = [2, 0, 1]
    straight, permuted = model(images), model(images[:, order])
    for name, value in vars(straight).items():
        torch.testing.assert_close(value[:, order], vars(permuted)[name], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["model", "model_x"])
@torch.no_grad()
def test_batch_of_two_is_twice_a_batch_of_one(kind: str, images: Tensor, request: pytest.FixtureRequest) -> None:
    network = request.getfixturevalue(kind)
    both = network(images)
    for index in range(2):
        alone = network(images[index : index + 1])
        for name, value in vars(both).items():
            torch.testing.assert_close(value[index], vars(alone)[name][0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["tiny", "tiny_x"])
def test_every_weight_influences_the_output(
    name: str, images: Tensor, randomized: Callable[[Pi3Config], Any], request: pytest.FixtureRequest
) -> None:
    config = request.getfixturevalue(name)
    network = randomized(config)
    arguments: tuple[Any, ...] = (images,)
    if isinstance(config, Pi3XConfig):
        poses = torch.eye(4).repeat(2, 3, 1, 1)
        poses[..., :3, 3] = torch.randn(2, 3, 3)
        arguments = (images, Conditions(depths=torch.rand(2, 3, 28, 42), rays=torch.rand(2, 3, 28, 42, 3), poses=poses))
    latents = network.encode(*arguments)
    output = network.decode(latents)
    translation, numbers = network.camera_head.raw(latents.camera_tokens[:, 5:])
    values = [output.local_points.log1p(), output.conf, translation, numbers]
    values += [output.metric.log()] if isinstance(config, Pi3XConfig) else []
    sum((value * torch.randn_like(value)).nan_to_num().sum() for value in values).backward()
    idle = [
        name for name, weight in network.named_parameters() if weight.grad is None or not bool(weight.grad.abs().sum())
    ]
    assert idle == []


@torch.no_grad()
def test_views_in_chunks_are_views_at_once() -> None:
    views = torch.arange(10.0)[:, None]
    sizes = []
    doubled = in_chunks(lambda part: (sizes.append(len(part)), part * 2)[1], views, size=4)
    assert torch.equal(doubled, views * 2)
    assert sizes == [4, 4, 2]


@torch.no_grad()
def test_bfloat16_weights_leave_the_heads_in_float32(
    images: Tensor, tiny: Pi3Config, randomized: Callable[[Pi3Config], Any]
) -> None:
    exact, rounded = randomized(tiny), randomized(tiny)
    for name, parameter in rounded.named_parameters():
        if name.partition(".")[0] not in Pi3.float32_modules:
            parameter.data = parameter.data.bfloat16()
    output = rounded(images)
    assert output.points.dtype == output.camera_poses.dtype == torch.float32
    turns = output.camera_poses[..., :3, :3]
    torch.testing.assert_close(turns @ turns.mT, torch.eye(3).expand_as(turns), atol=1e-5, rtol=0)
    assert (output.conf - exact(images).conf).norm() < 0.3 * exact(images).conf.norm()


class LargestTensor(TorchDispatchMode):
    """Remembers the number of elements of the largest tensor that any operation returned."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for one in result if isinstance(result, tuple | list) else [result]:
            if isinstance(one, Tensor):
                self.largest = max(self.largest, one.numel())
        return result


@torch.no_grad()
def test_memory_grows_linearly_with_the_views(model: Pi3) -> None:
    largest = []
    for count in (20, 40, 80):
        with LargestTensor() as mode:
            model(torch.rand(1, count, 3, 28, 28))
        largest.append(mode.largest)
    assert largest[1] <= 2.1 * largest[0]
    assert largest[2] <= 2.1 * largest[1]


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((1, 2, 3, 28, 30), ("multiples of 14", "28x30")),
        ((2, 3, 28, 28), ("[B, N, 3, H, W]", "[2, 3, 28, 28]")),
        ((1, 0, 3, 28, 28), ("at least one view",)),
        ((1, 2, 4, 28, 28), ("[1, 2, 4, 28, 28]",)),
    ],
)
def test_images_of_a_wrong_shape_are_refused(model: Pi3, shape: tuple[int, ...], words: tuple[str, ...]) -> None:
    with pytest.raises(RequestError) as caught:
        model(torch.zeros(shape))
    assert all(word in str(caught.value) for word in words)


def test_bytes_are_refused(model: Pi3) -> None:
    with pytest.raises(RequestError, match="floats from 0 to 1"):
        model(torch.zeros(1, 1, 3, 28, 28, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"decoder_layers": 5}, "pairs"),
        ({"decoder_heads": 5}, "multiple of 4"),
        ({"head_dim": 0}, "head_dim"),
        ({"encoder": {"dim": 32, "num_heads": 3}}, "3 heads"),
        ({"encoder": {"image_size": 57}}, "multiple of patch_size"),
        ({"encoder": {"width": 3}}, "not understood"),
        ({"colour": 1}, "colour"),
    ],
)
def test_dims_that_cannot_work_are_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Pi3Config.from_dict(values)


def test_config_survives_plain_values(tiny: Pi3Config, tiny_x: Pi3XConfig) -> None:
    assert Pi3Config.from_dict(tiny.to_dict()) == tiny
    assert Pi3XConfig.from_dict(tiny_x.to_dict()) == tiny_x
