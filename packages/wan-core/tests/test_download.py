"""``wan download``: the real client against a small hub on loopback that refuses and lies."""

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import hf_xet
import pytest
from click.testing import CliRunner

from wan_core.cli import wan
from wan_core.cli.download import companions_of, files_of
from wan_core.errors import CheckpointError
from wan_core.hub import MANIFEST_NAME, cached_file, download_files, open_hub, plan_download, verify_folder
from wan_core.presets import get_preset, list_presets

from .download_setting import FILES, TOKEN, WEIGHTS, contents, hub, quiet_environment, run
from .small_hub import COMMIT, SmallHub, git_hash, serving

__all__ = ["hub", "quiet_environment"]  # fixtures


@pytest.mark.parametrize("source", ["huggingface", "modelscope"])
def test_a_repository_arrives_whole_with_its_manifest(hub: SmallHub, source: str) -> None:
    result = CliRunner().invoke(wan, ["download", "owner/name", "--from", source])
    assert result.exit_code == 0, result.output
    assert "licence of the weights: " in result.output
    assert "pache" in result.output.split("licence of the weights: ")[1].splitlines()[0]
    assert contents(Path("name")) == FILES
    assert set(verify_folder("name")) == set(FILES)
    sent = hub.sent
    record = json.loads(run("owner/name", "--from", source, "--json").stdout)
    assert (record["received"], hub.sent) == (0, sent)
    assert {file["state"] for file in record["files"]} == {"present"}


def test_only_what_is_included(hub: SmallHub) -> None:
    record = json.loads(run("owner/name", "--include", "*.json", "--local-dir", "x", "--json").stdout)
    assert set(contents(Path("x"))) == {"config.json", "google/umt5-xxl/tokenizer.json"}
    assert record["revision"] == COMMIT
    assert "*.gguf" in run("owner/name", "--include", "*.gguf", code=3).output


def test_another_content_than_listed_is_never_accepted(hub: SmallHub) -> None:
    for name in ("high/model.safetensors", "config.json"):
        hub.served = {name: bytes(reversed(hub.files[name]))}
        folder = Path("of") / Path(name).name
        assert "does not have the hash" in run("owner/name", "--local-dir", str(folder), code=3).output
        assert not (folder / name).exists()
        assert not (folder / MANIFEST_NAME).exists()
        assert not (folder / ".cache/wan-download" / name).exists()


def test_large_files_come_from_the_chunk_store(hub: SmallHub, tmp_path: Path) -> None:
    """Through hf-xet itself, from a store in a folder."""
    name, steps = "high/model.safetensors", list[int]()
    (tmp_path / "source").write_bytes(WEIGHTS)
    hub.chunk_store = f"local://{tmp_path}/store"
    with hf_xet.XetSession().new_upload_commit(endpoint=hub.chunk_store) as commit:
        upload = commit.start_upload_file(str(tmp_path / "source"), hf_xet.COMPUTE_SHA256)
    hub.chunked = {name: upload.result().xet_info.hash}

    @contextmanager
    def progress(total: int, done: int) -> Iterator[Callable[[int], object]]:
        yield steps.append

    download_files(plan_download(open_hub("huggingface"), "owner/name", Path("name")), progress)
    assert contents(Path("name")) == FILES
    assert hub.sent == sum(steps) - len(WEIGHTS) < 2000
    shutil.rmtree(tmp_path / "store")
    with pytest.raises(CheckpointError, match="cannot be reached after 3 tries"):
        download_files(plan_download(open_hub("huggingface"), "owner/name", Path("y")))


def test_a_changed_file_is_replaced(hub: SmallHub) -> None:
    run("owner/name")
    hub.files["high/model.safetensors"] = WEIGHTS[::-1]
    hub.files["config.json"] = b'{"dim": 16}'
    run("owner/name")
    assert contents(Path("name")) == hub.files
    verify_folder("name")


REFUSALS: list[tuple[dict[str, Any], tuple[str, ...], str]] = [
    ({}, ("owner/other",), "has no model owner/other"),
    ({}, ("owner/name", "--revision", "v9"), "has no model owner/name with a revision 'v9'"),
    ({}, ("owner/name", "--revision", "v9", "--from", "modelscope"), "has no model owner/name with a revision 'v9'"),
    (
        {"token": TOKEN},
        ("owner/name",),
        "does not show owner/name: check the name, and its page for access; give a token",
    ),
    ({"token": TOKEN}, ("owner/name", "--token", "hf_wrong"), "the token is not let in"),
    ({"token": TOKEN}, ("owner/name", "--token", "hf_wrong", "--from", "modelscope"), "the token is not let in"),
    (
        {"gated": True},
        ("owner/name",),
        "is gated on 127.0.0.1: accept its terms on its page there; give a token (--token or HF_TOKEN)",
    ),
    (
        {"gated": True},
        ("owner/name", "--token", "hf_wrong"),
        "is gated on 127.0.0.1: accept its terms on its page there; the token is not let in",
    ),
    ({"forbidden": True}, ("owner/name", "--token", "hf_wrong"), "does not show owner/name"),
]


@pytest.mark.parametrize(("state", "words", "message"), REFUSALS)
def test_refusals_are_one_sentence(hub: SmallHub, state: dict[str, Any], words: tuple[str, ...], message: str) -> None:
    for name, value in state.items():
        setattr(hub, name, value)
    output = run(*words, code=3).output
    assert message in output
    assert TOKEN not in output
    assert "hf_wrong" not in output


def test_a_token_of_the_environment_is_used(hub: SmallHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.token = TOKEN
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    run("owner/name")
    monkeypatch.setenv("MODELSCOPE_API_TOKEN", TOKEN)
    run("owner/name", "--from", "modelscope")


@pytest.mark.parametrize("source", ["huggingface", "modelscope"])
def test_a_token_stays_with_its_server(hub: SmallHub, source: str) -> None:
    with serving(SmallHub(dict(FILES))) as storage:
        # A cookie belongs to a name of a server, whatever the port.
        hub.token, hub.redirect_to = TOKEN, storage.address.replace("127.0.0.1", "localhost")
        run("owner/name", "--token", TOKEN, "--from", source)
        assert {path for command, path, _ in storage.requests if command == "GET"} == {f"/storage/{n}" for n in FILES}
        assert TOKEN not in repr(storage.requests)
    assert contents(Path("name")) == FILES
    assert [request for request in hub.requests if TOKEN not in repr(request)] == []


@pytest.mark.parametrize("token", ["hf_secret\nsecret", "hf secret", "hf_s\u00e9cret", "\x1bhf_secret"])
def test_an_impossible_token_is_not_shown(hub: SmallHub, token: str) -> None:
    output = run("owner/name", "--token", token, code=2).output
    assert "secret" not in output
    assert "cret" not in output


def test_offline_is_one_sentence(hub: SmallHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.is_offline_mode", lambda: True)
    assert "HF_HUB_OFFLINE is set" in run("owner/name", code=3).output
    assert hub.requests == []


def test_without_the_client_of_modelscope_its_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "modelscope_hub", None)
    assert "install wan-core[modelscope]" in run("owner/name", "--from", "modelscope", code=5).output


def test_the_cache_of_hf_home_is_used(hub: SmallHub, tmp_path: Path) -> None:
    entry = next(entry for entry in hub.listing()["siblings"] if "lfs" in entry)
    blobs = tmp_path / "home" / "hub" / "models--owner--name" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / entry["lfs"]["sha256"]).write_bytes(WEIGHTS)
    record = json.loads(run("owner/name", "--json").stdout)
    assert {file["state"] for file in record["files"]} == {"copied", "downloaded"}
    assert record["received"] == hub.sent < 2000
    (blobs / entry["lfs"]["sha256"]).write_bytes(WEIGHTS[::-1])
    run("owner/name", "--local-dir", "y")
    assert contents(Path("y")) == FILES


def test_a_single_file_goes_through_the_cache_of_the_hub(hub: SmallHub, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "high/model.safetensors"
    assert cached_file("owner/name", name).read_bytes() == WEIGHTS
    sent = hub.sent
    cached_file("owner/name", name)
    assert hub.sent == sent
    with pytest.raises(CheckpointError, match="has no model owner/name with a file none"):
        cached_file("owner/name", "none")
    monkeypatch.setattr("huggingface_hub.constants.is_offline_mode", lambda: True)
    assert cached_file("owner/name", name).read_bytes() == WEIGHTS
    with pytest.raises(CheckpointError, match="HF_HUB_OFFLINE is set"):
        cached_file("owner/name", "config.json")


def test_a_single_file_with_another_content_than_its_hash_is_not_kept(hub: SmallHub) -> None:
    name = "high/model.safetensors"
    hub.served = {name: WEIGHTS[::-1]}
    with pytest.raises(CheckpointError, match="does not have the hash"):
        cached_file("owner/name", name)
    hub.served = {}
    assert cached_file("owner/name", name).read_bytes() == WEIGHTS


def test_a_disk_that_is_too_small_is_seen_before(hub: SmallHub, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(".")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=200_000))
    output = run("owner/name", code=4).output
    assert "needs 301009 bytes" in output
    assert not Path("name").exists()


def test_a_target_that_is_a_file(hub: SmallHub) -> None:
    Path("name").write_bytes(b"")
    assert "cannot write" in run("owner/name", code=4).output


@pytest.mark.parametrize(
    "name",
    [
        "../x",
        "a/../../x",
        "/etc/x",
        "a\\..\\x",
        "C:/x",
        "a//x",
        "./x",
        "",
        "a\nb",
        "a\x00b",
        7,
        None,
        ".git/config",
        "a/.git/hooks/post-checkout",
        ".bashrc",
    ],
)
@pytest.mark.parametrize("source", ["huggingface", "modelscope"])
def test_hostile_names_are_refused(hub: SmallHub, name: object, source: str) -> None:
    hub.entries = [{"rfilename": "ok", "size": 1, "blobId": ""}, {"rfilename": name, "size": 1}]
    if source == "modelscope":
        hub.modelscope_listing = lambda: {  # type: ignore[method-assign]
            "Data": {"Files": [{"Path": name, "Size": 1, "Type": "blob"}]}
        }
    assert "a hidden name, one that could leave the folder" in run("owner/name", "--from", source, code=3).output
    assert not Path("name").exists()


def test_the_notes_of_git_are_left_out_and_files_without_a_hash_not_called_checked(hub: SmallHub) -> None:
    hub.files = {"a.bin": b"a", "b.bin": b"b"}
    hub.entries = [
        {"rfilename": ".gitattributes", "size": 9},
        {"rfilename": "a.bin", "size": 1, "blobId": git_hash(b"a")},
        {"rfilename": "b.bin", "size": 1},
    ]
    output = run("owner/name").output
    assert "2 files, 2 bytes, 1 of them by size alone, for the hub tells no hash" in output
    assert sorted(path.name for path in Path("name").glob("*.bin")) == ["a.bin", "b.bin"]


@pytest.mark.parametrize("size", [-1, 1 << 60, True, "1", None, 1.5])
def test_hostile_sizes_are_refused(hub: SmallHub, size: object) -> None:
    hub.entries = [{"rfilename": "ok", "size": size}]
    assert "no possible size" in run("owner/name", code=3).output


def test_a_link_below_the_folder_leads_nothing_out(hub: SmallHub, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    Path("name").mkdir()
    Path("name/high").symlink_to(tmp_path / "outside")
    assert "through a link" in run("owner/name", code=3).output
    assert not list((tmp_path / "outside").iterdir())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("t2v-15B",), "there is no model 't2v-15B'"),
        (("tiny-t2v",), "come with the package"),
        (("a/b/c",), "OWNER/NAME"),
        (("../b",), "OWNER/NAME"),
    ],
)
def test_impossible_requests(words: tuple[str, ...], message: str) -> None:
    assert message in run(*words, code=2).output


@pytest.mark.parametrize("address", ["file:///etc", "ftp://a", "hub", "http://[::1", "http://a:b"])
def test_an_impossible_address(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    assert "https://" in run("owner/name", code=2).output


def test_a_preset_brings_what_it_reads_and_no_more(hub: SmallHub) -> None:
    wanted = {
        "LICENSE.txt": b"free",
        "high_noise_model/config.json": b"{}",
        "high_noise_model/diffusion_pytorch_model-00001-of-00001.safetensors": b"h",
        "high_noise_model/diffusion_pytorch_model.safetensors.index.json": b"{}",
        "low_noise_model/config.json": b"{}",
        "low_noise_model/diffusion_pytorch_model-00001-of-00001.safetensors": b"l",
        "Wan2.1_VAE.pth": b"v",
        "models_t5_umt5-xxl-enc-bf16.pth": b"t",
        "google/umt5-xxl/spiece.model": b"s",
    }
    hub.repository = "Wan-AI/Wan2.2-T2V-A14B"
    hub.files = {**wanted, "README.md": b"r", "assets/logo.png": b"p", "nohup.out": b"n"}
    assert "t2v-A14B" not in run("t2v-A14B").stdout
    assert contents(Path("Wan2.2-T2V-A14B")) == wanted
    del hub.files["Wan2.1_VAE.pth"]
    assert "no files like Wan2.1_VAE.pth" in run("t2v-A14B", code=3).output


def test_what_is_published_elsewhere_is_told(hub: SmallHub, monkeypatch: pytest.MonkeyPatch) -> None:
    preset = get_preset("t2v-1.3B")
    optional = replace(preset.part("vae"), name="pose_encoder", file="pose.ckpt", is_optional=True)
    more = replace(preset, parts=(*preset.parts, optional), besides="'other download' fetches the rest")
    monkeypatch.setattr("wan_core.cli.download.get_preset", lambda name: more)
    hub.repository = "Wan-AI/Wan2.1-T2V-1.3B"
    hub.files = dict.fromkeys(("config.json", "diffusion_pytorch_model.safetensors", "Wan2.1_VAE.pth",
                               "models_t5_umt5-xxl-enc-bf16.pth", "google/umt5-xxl/spiece.model"), b"x")  # fmt: skip
    result = CliRunner().invoke(wan, ["download", "t2v-1.3B"])
    assert result.exit_code == 0, result.output
    assert "note: 'other download' fetches the rest" in result.output


def test_every_published_preset_has_patterns_for_each_part() -> None:
    published = [preset for name in list_presets() if (preset := get_preset(name)).repository]
    assert len(published) >= 7
    for preset in published:
        patterns = files_of(preset)
        parts = {part.name: part.file for part in preset.parts if not part.is_optional}
        assert any("clip" in pattern for pattern in patterns) == ("image_encoder" in parts)
        assert {parts["vae"], parts["text_encoder"], f"{parts['tokenizer']}/*"} <= set(patterns)
        assert any(pattern.endswith("diffusion_pytorch_model*.safetensors") for pattern in patterns)
        assert companions_of(preset)[-1] == "LICENSE*"
