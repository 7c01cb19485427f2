"""Outputs are checked before anything is computed, and the check leaves no trace."""

import os
from pathlib import Path

import pytest

from wan_core.errors import BackendError, MediaError, RequestError
from wan_core.media import check_output, check_own_files, is_pattern


def everything(folder: Path) -> list[tuple[str, int]]:
    return sorted((str(path), path.lstat().st_mtime_ns) for path in folder.rglob("*"))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.mp4", "mp4"),
        ("A.MP4", "mp4"),
        ("a.gif", "gif"),
        ("a.webp", "webp"),
        ("a.png", "png"),
        ("%d.png", "frames"),
        ("x_%05d_y.png", "frames"),
        ("50% done.mp4", "mp4"),
        ("new/deeper/a.mp4", "mp4"),
        ("-a b'\"$(x).mp4", "mp4"),
    ],
)
def test_usual_names_pass_and_nothing_is_created(tmp_path: Path, name: str, kind: str) -> None:
    target = check_output(tmp_path / name)
    assert target.kind == kind
    assert target.path == tmp_path / name
    assert everything(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a", r"ends in no known ending; use \.mp4"),
        ("a.avi", r"ends in \.avi; use \.mp4, \.gif, \.webp, or frames/%04d\.png"),
        ("a.mp4.part", r"ends in \.part"),
        ("%04d_%04d.png", "exactly one %d"),
        ("100%.png", "exactly one %d"),
        ("%s.png", "exactly one %d"),
        ("%%04d.png", "exactly one %d"),
        ("%020d.png", "exactly one %d"),
        ("x" * 300 + ".mp4", "no valid file name"),
        ("nul\0.mp4", "no valid file name"),
    ],
)
def test_names_that_never_work_are_request_errors(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        check_output(f"{tmp_path}/{name}")
    assert "\n" not in str(caught.value)
    assert everything(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("folder", "is a folder; name a file in it"),
        ("folder.mp4", "is a folder; name a file in it"),
        ("new/", "is a folder"),
        ("file/a.mp4", "no folder"),
        ("file/deeper/a.mp4", "no folder"),
        ("pipe.mp4", "no regular file"),
    ],
)
def test_names_that_are_taken_are_media_errors(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "file").write_text("x")
    os.mkfifo(tmp_path / "pipe.mp4")
    before = everything(tmp_path)
    with pytest.raises(MediaError, match=message) as caught:
        check_output(f"{tmp_path}/{name}")
    assert "\n" not in str(caught.value)
    assert everything(tmp_path) == before


def test_an_empty_name_is_a_request_error() -> None:
    with pytest.raises(RequestError, match="empty"):
        check_output("")


def test_messages_show_names_without_control_characters(tmp_path: Path) -> None:
    with pytest.raises(RequestError) as caught:
        check_output(tmp_path / "\x1b[31mred\nline.avi")
    assert "\x1b" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["a.mp4", "new/a.mp4", "%04d.png", "new/%04d.png"])
def test_a_folder_that_takes_no_file_is_a_media_error(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    with pytest.raises(MediaError, match="permission denied; choose a folder"):
        check_output(tmp_path / name)


def test_a_full_disk_is_noticed_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def __enter__(self) -> "Full":
            return self

        def __exit__(self, *error: object) -> None:
            pass

        def write(self, data: bytes) -> None:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.TemporaryFile", lambda **options: Full())
    with pytest.raises(MediaError, match="the disk is full"):
        check_output(tmp_path / "a.mp4")


def test_a_write_protected_file_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.mp4").write_bytes(b"mine")
    check_output(tmp_path / "a.mp4")
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(MediaError, match="write-protected"):
        check_output(tmp_path / "a.mp4")


def test_a_longer_older_sequence_is_not_mixed_with(tmp_path: Path) -> None:
    for name in ("0000.png", "0016.png", "0017.png", "17.png", "other_0099.png"):
        (tmp_path / name).write_bytes(b"")
    check_output(tmp_path / "%04d.png", num_frames=18)
    with pytest.raises(RequestError, match=r"0017\.png of a longer clip"):
        check_output(tmp_path / "%04d.png", num_frames=17)
    check_output(tmp_path / "%05d.png", num_frames=17)


def test_one_png_holds_one_frame(tmp_path: Path) -> None:
    check_output(tmp_path / "a.png", num_frames=1)
    with pytest.raises(RequestError, match="one picture, not 5 frames"):
        check_output(tmp_path / "a.png", num_frames=5)


def test_sound_needs_mp4_and_gif_is_slow(tmp_path: Path) -> None:
    check_output(tmp_path / "a.mp4", has_audio=True)
    with pytest.raises(RequestError, match=r"cannot hold sound; use \.mp4"):
        check_output(tmp_path / "a.gif", has_audio=True)
    check_output(tmp_path / "a.gif", fps=50)
    with pytest.raises(RequestError, match="at most 50 frames per second, got 60"):
        check_output(tmp_path / "a.gif", fps=60)


@pytest.mark.parametrize(("name", "codec"), [("a.mp4", "libx264"), ("a.webp", "libwebp_anim")])
def test_a_missing_encoder_is_a_backend_error(
    tmp_path: Path, name: str, codec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import av

    def unknown(name: str, mode: str) -> None:
        raise av.codec.codec.UnknownCodecError(name)

    monkeypatch.setattr(av, "Codec", unknown)
    with pytest.raises(BackendError, match=f"no {codec} encoder"):
        check_output(tmp_path / name)
    check_output(tmp_path / "a.gif")


def test_outputs_are_files_of_their_own_and_no_inputs(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/0001.png").write_bytes(b"x")
    (tmp_path / "link.mp4").symlink_to("in/0001.png")
    given = [tmp_path / "in"]
    check_own_files([tmp_path / "a.mp4", tmp_path / "b.mp4", tmp_path / "in/b%04d.png"], given)
    for outputs in (
        [tmp_path / "in/../in/0001.png"],
        [tmp_path / "link.mp4"],
        [tmp_path / "in/%04d.png"],
        [tmp_path / "a.mp4", tmp_path / "in/../a.mp4"],
        [tmp_path / "%04d.png", tmp_path / "0003.png"],
        [tmp_path / "0003.png", tmp_path / "%d.png"],
    ):
        with pytest.raises(RequestError, match="would take the place of an"):
            check_own_files(outputs, given)


def test_a_percent_sign_makes_a_pattern_of_pictures_alone() -> None:
    assert is_pattern("frames/%04d.png")
    assert not is_pattern("50%d.mp4")
    assert not is_pattern("50%/a.png")
