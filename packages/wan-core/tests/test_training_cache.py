import json

import pytest
import torch

from wan_core.checkpoints import MemorySource, weights_fingerprint, write_file
from wan_core.drafts import alone_in
from wan_core.errors import CheckpointError, ConfigError, MediaError, RequestError
from wan_core.files import hash_file, sample_file
from wan_core.training import Cache, write_cache
from wan_core.training.cache import ShuffledBatches
from wan_core.training.examples import stack

SETTINGS = {"fps": 8, "size": [64, 64]}


def encode(number):
    return {"latents": torch.full((2, 3), float(number)), "context": torch.arange(number + 1)}


def test_a_cache_gives_back_what_was_encoded(tmp_path) -> None:
    write_cache(tmp_path, 5, encode, SETTINGS, shard_size=2)
    cache = Cache(tmp_path, expected={"fps": 8})
    assert len(cache) == 5
    for number in range(5):
        example = cache[number]
        assert set(example) == {"latents", "context"}
        assert torch.equal(example["latents"], encode(number)["latents"])
        assert torch.equal(example["context"], encode(number)["context"])


def test_making_a_cache_goes_on_where_it_stopped(tmp_path) -> None:
    asked = []

    def failing(number):
        asked.append(number)
        if number == 3 and asked.count(3) == 1:
            raise MediaError("clip 3 is unreadable")
        return encode(number)

    with pytest.raises(MediaError):
        write_cache(tmp_path, 6, failing, SETTINGS, shard_size=2)
    with pytest.raises(RequestError, match="1 of 3 shards"):
        Cache(tmp_path)
    done = []
    write_cache(tmp_path, 6, failing, SETTINGS, shard_size=2, report=done.append)
    assert asked == [0, 1, 2, 3, 2, 3, 4, 5]
    assert done == [2, 4, 6]


def test_other_settings_are_refused_with_the_difference(tmp_path) -> None:
    write_cache(tmp_path, 2, encode, SETTINGS)
    with pytest.raises(ConfigError, match="fps was 8, is 16"):
        write_cache(tmp_path, 2, encode, SETTINGS | {"fps": 16})
    with pytest.raises(ConfigError, match=r"size was \[64, 64\], is \[32, 32\]"):
        Cache(tmp_path, expected={"size": (32, 32)})


def test_of_settings_within_settings_the_one_that_differs_is_told(tmp_path) -> None:
    sampling = {"negative": "x" * 1000, "steps": 4}
    write_cache(tmp_path, 2, encode, SETTINGS | {"sampling": sampling})
    with pytest.raises(ConfigError, match=r"with other settings: sampling\.steps was 4, is 8; name another folder, or"):
        write_cache(tmp_path, 2, encode, SETTINGS | {"sampling": sampling | {"steps": 8}})


def test_a_damaged_shard_is_refused_and_made_anew(tmp_path) -> None:
    write_cache(tmp_path, 4, encode, SETTINGS, shard_size=2)
    shard = tmp_path / "shard-00001.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    cache = Cache(tmp_path)
    assert torch.equal(cache[0]["latents"], encode(0)["latents"])
    with pytest.raises(CheckpointError, match="damaged"):
        cache[3]
    write_cache(tmp_path, 4, encode, SETTINGS, shard_size=2)
    assert torch.equal(Cache(tmp_path)[3]["latents"], encode(3)["latents"])


def test_no_cache_and_a_broken_index_are_refused(tmp_path) -> None:
    with pytest.raises(RequestError, match="no cache"):
        Cache(tmp_path)
    (tmp_path / "cache.json").write_text("{")
    with pytest.raises(CheckpointError, match="damaged"):
        Cache(tmp_path)
    with pytest.raises(RequestError, match="at least one"):
        write_cache(tmp_path / "new", 0, encode, SETTINGS)
    (tmp_path / "file").write_text("")
    with pytest.raises(MediaError, match="cannot write"):
        write_cache(tmp_path / "file" / "cache", 1, encode, SETTINGS)


def test_batches_share_a_bucket_show_all_and_repeat() -> None:
    buckets = ["wide"] * 7 + ["tall"] * 3
    batches = ShuffledBatches(buckets, 4, seed=3)
    epoch = [batches[step] for step in range(batches.steps_per_epoch)]
    assert batches.steps_per_epoch == 3
    assert all(len(batch) == 4 and len({buckets[i] for i in batch}) == 1 for batch in epoch)
    assert {i for batch in epoch for i in batch} == set(range(10))
    again = ShuffledBatches(buckets, 4, seed=3)
    assert [again[step] for step in (5, 0, 4)] == [batches[step] for step in (5, 0, 4)]
    assert [batches[step] for step in range(3, 6)] != epoch


def test_batches_need_examples() -> None:
    with pytest.raises(ConfigError):
        ShuffledBatches([], 2, seed=0)
    with pytest.raises(ConfigError):
        ShuffledBatches([1], 0, seed=0)


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "[" * 100_000, "null", "{}", '{"settings": {}, "shards": {}}', '{"settings": [], "shards": []}',
        '{"settings": {"count": "x", "shard_size": 1}, "shards": {}}',
        '{"settings": {"count": 2, "shard_size": 0}, "shards": {}}',
        '{"settings": {"count": 2, "shard_size": 2}, "shards": {"shard-00000.safetensors": 5}}',
    ],
)  # fmt: skip
def test_an_index_that_nobody_writes_is_damage(tmp_path, text) -> None:
    write_cache(tmp_path, 2, encode, SETTINGS)
    (tmp_path / "cache.json").write_text(text)
    for use in (lambda: Cache(tmp_path), lambda: write_cache(tmp_path, 2, encode, SETTINGS)):
        with pytest.raises(CheckpointError, match=r"cache\.json is damaged.*; remove the folder and make it anew"):
            use()


def test_a_sample_of_a_file_sees_its_size_its_header_and_its_whole_length(tmp_path) -> None:
    file = tmp_path / "large"
    content = bytearray(5 << 20)
    names = set()
    for place in (None, 0, (1 << 20) - 1, len(content) // 3, len(content) - 1):
        if place is not None:
            content[place] ^= 1
        file.write_bytes(content)
        names.add(sample_file(file))
    file.write_bytes(content[:-1])
    assert len({*names, sample_file(file)}) == 6


def test_the_weights_of_a_folder_are_its_network_not_what_lies_beside(tmp_path) -> None:
    for name in ("diffusion_pytorch_model-00001-of-00002", "diffusion_pytorch_model-00002-of-00002"):
        (tmp_path / f"{name}.safetensors").write_bytes(name.encode())
    before = weights_fingerprint(tmp_path)
    (tmp_path / "lora.safetensors").write_bytes(b"large" * 100)
    first = tmp_path / "diffusion_pytorch_model-00001-of-00002.safetensors"
    assert weights_fingerprint(tmp_path) == weights_fingerprint(first) == before
    (tmp_path / "diffusion_pytorch_model-00001-of-00002.safetensors").write_bytes(b"other")
    assert weights_fingerprint(tmp_path) != before
    assert weights_fingerprint(tmp_path / "owner/name") == str(tmp_path / "owner/name")


@pytest.mark.parametrize(
    "change",
    [{"count": float("inf")}, {"count": 1.5}, {"repeats": [10**12]}, {"sources": ["x", "y"]}, {"repeats": "ab"}],
)
def test_counts_of_a_stranger_are_checked(tmp_path, change) -> None:
    write_cache(tmp_path, 2, encode, SETTINGS)
    index = json.loads((tmp_path / "cache.json").read_text())
    index["settings"] |= change
    (tmp_path / "cache.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="damaged"):
        Cache(tmp_path)


def test_examples_of_a_stranger_are_checked(tmp_path) -> None:
    latents = torch.zeros(2, 1, 4, 4)
    write_cache(tmp_path, 3, lambda number: {"latents": latents, "mask": latents}, SETTINGS)
    write_file(
        MemorySource({"latents.0": latents, "foo": latents, "mask.1": latents}), tmp_path / "shard-00000.safetensors"
    )
    index = json.loads((tmp_path / "cache.json").read_text())
    index["shards"] = {"shard-00000.safetensors": hash_file(tmp_path / "shard-00000.safetensors")}
    (tmp_path / "cache.json").write_text(json.dumps(index))
    cache = Cache(tmp_path)
    assert set(cache[0]) == {"latents"}
    with pytest.raises(CheckpointError, match="nothing of example 2"):
        cache[2]
    for rows in ([{"latents": latents[0]}], [{"latents": latents.long()}], [cache[0], {"latents": latents[:1]}]):
        with pytest.raises(CheckpointError, match="make the cache anew"):
            stack(rows, torch.device("cpu"))
    with pytest.raises(ConfigError, match="no latents"):
        stack([cache[0], cache[1]], torch.device("cpu"))


def test_two_processes_do_not_make_one_cache(tmp_path) -> None:
    with alone_in(tmp_path, RequestError("")), pytest.raises(RequestError, match="another process makes the cache"):
        write_cache(tmp_path, 2, encode, SETTINGS)


def shared():
    return {"negative": torch.arange(3.0)}


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}


def test_what_parts_of_the_processes_make_is_the_cache_of_one(tmp_path) -> None:
    write_cache(tmp_path / "whole", 11, encode, SETTINGS, shard_size=2, common=shared)
    done = []
    for index in (2, 0, 1):
        with pytest.raises(RequestError, match=r"no cache|not finished"):
            Cache(tmp_path / "parts")
        write_cache(
            tmp_path / "parts", 11, encode, SETTINGS, shard_size=2, common=shared, part=(index, 3), report=done.append
        )
    assert done == [2, 3, 2, 4, 2, 4]
    assert files_of(tmp_path / "parts") == files_of(tmp_path / "whole")
    cache = Cache(tmp_path / "parts")
    assert torch.equal(cache.common()["negative"], torch.arange(3.0))
    assert cache[10]["latents"][0, 0] == 10


def test_other_parts_go_on_with_what_is_there(tmp_path) -> None:
    asked = []

    def counted(number):
        asked.append(number)
        return encode(number)

    write_cache(tmp_path, 8, counted, SETTINGS, shard_size=2, part=(0, 2))
    write_cache(tmp_path, 8, counted, SETTINGS, shard_size=2)
    assert asked == [0, 1, 4, 5, 2, 3, 6, 7]


def test_parts_with_other_settings_and_parts_that_cannot_be_are_refused(tmp_path) -> None:
    write_cache(tmp_path, 8, encode, SETTINGS, part=(0, 2))
    with pytest.raises(ConfigError, match="fps was 8, is 16"):
        write_cache(tmp_path, 8, encode, SETTINGS | {"fps": 16}, part=(1, 2))
    with pytest.raises(RequestError, match="part 3 of 2"):
        write_cache(tmp_path, 8, encode, SETTINGS, part=(2, 2))
    with (
        alone_in(tmp_path, RequestError("held"), name=".lock-2-of-2"),
        pytest.raises(RequestError, match="part 2 of the cache"),
    ):
        write_cache(tmp_path, 8, encode, SETTINGS, part=(1, 2))


def test_a_cache_names_the_command_that_makes_it(tmp_path) -> None:
    settings = {"made_by": "sfu something", "long": "x" * 1000}
    write_cache(tmp_path, 3, encode, settings, shard_size=1, part=(0, 2))
    with pytest.raises(RequestError, match=r"2 of 3 shards.*'sfu something' again"):
        Cache(tmp_path)
    with pytest.raises(ConfigError, match="with 'sfu something'") as caught:
        write_cache(tmp_path, 3, encode, settings | {"long": "y" * 1000}, shard_size=1, part=(1, 2))
    assert len(str(caught.value)) < 800
    write_cache(tmp_path, 3, encode, settings, shard_size=1, part=(1, 2))
    assert Cache(tmp_path).common() == {}
    (tmp_path / "shard-00001.safetensors").write_bytes(b"no")
    with pytest.raises(CheckpointError, match="'sfu something' again"):
        Cache(tmp_path)[1]
