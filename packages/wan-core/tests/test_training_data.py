import json
from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from PIL import Image

from wan_core.errors import ConfigError, MediaError, RequestError
from wan_core.media import write_video
from wan_core.training.data import ClipSettings, check_example, load_clip, load_first_image
from wan_core.training.folders import find_examples, reading_notes

from .media_clips import encode_frames, flat_frame

SETTINGS = ClipSettings(num_frames=5, fps=8, area=32 * 32)


@pytest.fixture
def folder(tmp_path):
    ramp = torch.linspace(-1, 1, 12).view(1, 12, 1, 1).expand(3, 12, 32, 64)
    for name in ("a", "b"):
        write_video([ramp], tmp_path / f"{name}.mp4", fps=8)
        (tmp_path / f"{name}.txt").write_text(f"clip {name}\n")
    return tmp_path


def write_jsonl(folder, *rows) -> None:
    (folder / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows))


def test_videos_beside_text_files_are_examples(folder) -> None:
    examples = find_examples(folder)
    assert [(e.file.name, e.caption) for e in examples] == [("a.mp4", "clip a"), ("b.mp4", "clip b")]


def test_metadata_wins_and_gives_parts_and_pictures(folder) -> None:
    Image.new("RGB", (20, 20), (255, 0, 0)).save(folder / "first.png")
    lines = ["file,caption,image,start,end", 'a.mp4,"one, two",first.png,0.5,1.5', "b.mp4,three,,,"]
    (folder / "metadata.csv").write_text("\n".join(lines))
    first, second = find_examples(folder)
    assert (first.caption, first.start, first.end) == ("one, two", 0.5, 1.5)
    assert (second.image, second.end) == (None, None)
    clip = load_clip(first, SETTINGS)
    assert load_first_image(first, clip)[0].min() == 1.0
    torch.testing.assert_close(load_first_image(second, clip), clip[:, 0])


def test_captions_may_have_several_lines(folder) -> None:
    (folder / "metadata.csv").write_text('file,caption\na.mp4,"first line\nsecond \u2028 line"\nb.mp4,other\n')
    assert [each.caption for each in find_examples(folder)] == ["first line\nsecond \u2028 line", "other"]
    (folder / "metadata.csv").unlink()
    line = json.dumps({"file": "a.mp4", "caption": "one \u2028 two"}, ensure_ascii=False)
    (folder / "metadata.jsonl").write_text(f"{line}\n\n", encoding="utf-8")
    assert [each.caption for each in find_examples(folder)] == ["one \u2028 two"]


def test_clips_have_the_size_of_their_bucket_and_start_where_asked(folder) -> None:
    write_jsonl(folder, {"file": "a.mp4", "caption": "x", "start": 0.25}, {"file": "b.mp4", "caption": "y"})
    later, whole = find_examples(folder)
    assert check_example(whole, SETTINGS)[0].shape == (5, 16, 64)
    clip = load_clip(whole, SETTINGS)
    assert clip.shape == (3, 5, 16, 64)
    torch.testing.assert_close(load_clip(later, SETTINGS)[:, 0], clip[:, 2], atol=0.02, rtol=0)


def test_frames_are_resampled_to_the_asked_rate(folder) -> None:
    example = find_examples(folder)[0]
    slow = load_clip(example, ClipSettings(num_frames=5, fps=4, area=1024))
    torch.testing.assert_close(slow[:, 1], load_clip(example, SETTINGS)[:, 2], atol=0.02, rtol=0)


def test_an_hdr_clip_in_wide_pixels_is_trained_on_as_it_is_shown_and_noted(folder) -> None:
    for name in "ab":
        # (203, 70, 51) as light of 203 cd/m2 in BT.2020, coded in PQ
        frames = [flat_frame((0.4809, 0.3404, 0.2670), "yuv420p10le", 9, size=(72, 64)) for _ in range(12)]
        tags = {"colorspace": 9, "color_primaries": 9, "color_trc": 16, "sample_aspect_ratio": Fraction(16, 9)}
        encode_frames(folder / f"{name}.mp4", frames, "libx264", tags=tags, crf="1")
    examples = [checked for each in find_examples(folder) for checked in check_example(each, SETTINGS)]
    assert examples[0].shape == (5, 16, 64)
    colours = load_clip(examples[0], SETTINGS)[:, 2, 8, 32]
    torch.testing.assert_close((colours + 1) * 127.5, torch.tensor([203.0, 70.0, 51.0]), atol=3, rtol=0)
    assert reading_notes(examples) == [
        f"{folder / name}.mp4 is HDR (PQ, BT.2020); it is tone-mapped to BT.709" for name in "ab"
    ]
    many = [replace(examples[0], notes=(f"note {number}",)) for number in range(30)]
    assert reading_notes(many)[20:] == ["and 10 more such notes"]
    assert reading_notes([many[0], many[0]]) == ["note 0"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"file": "a.mp4"}, "caption is missing"),
        ({"caption": "x"}, "file is missing"),
        ({"file": "a.mp4", "caption": " "}, "caption is missing"),
        ({"file": "c.mp4", "caption": "x"}, "no file"),
        ({"file": "a.mp4", "caption": "x", "image": "c.png"}, "no file"),
        ({"file": "a.mp4", "captoin": "x"}, "unknown column 'captoin'; columns are file, caption"),
        ({"file": "a.mp4", "caption": "x", "start": "soon"}, "start must be seconds, got 'soon'"),
        ({"file": "a.mp4", "caption": "x", "end": "nan"}, "end must be seconds, got 'nan'"),
        ({"file": "a.mp4", "caption": "x", "start": 2, "end": 1}, "below end"),
        ({"file": "a.mp4", "caption": "x", "start": -1}, "at least 0"),
        (["a.mp4", "x"], "one JSON object"),
    ],
)
def test_wrong_metadata_is_named_with_its_line(folder, row, message) -> None:
    write_jsonl(folder, {"file": "a.mp4", "caption": "fine"}, row)
    with pytest.raises(RequestError, match=f"line 2.*{message}"):
        find_examples(folder)


def test_other_wrong_folders_are_named(folder, tmp_path) -> None:
    with pytest.raises(RequestError, match="no folder"):
        find_examples(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RequestError, match="no examples"):
        find_examples(tmp_path / "empty")
    (folder / "b.mp4").rename(folder / "c.mp4")
    with pytest.raises(RequestError, match=r"b\.txt has no video or image"):
        find_examples(folder)
    (folder / "b.txt").unlink()
    with pytest.raises(RequestError, match=r"c\.mp4 has no caption"):
        find_examples(folder)
    (folder / "c.txt").write_text("\n")
    with pytest.raises(RequestError, match="empty"):
        find_examples(folder)
    write_jsonl(folder)
    (folder / "metadata.csv").write_text("file,caption\n")
    with pytest.raises(RequestError, match="keep one"):
        find_examples(folder)
    (folder / "metadata.jsonl").unlink()
    (folder / "metadata.csv").write_text("file,caption\na.mp4,one, two\n")
    with pytest.raises(RequestError, match="quote commas"):
        find_examples(folder)
    (folder / "metadata.csv").write_bytes(b"file,caption\n\xff\xfe")
    with pytest.raises(RequestError, match="UTF-8"):
        find_examples(folder)


def test_short_and_damaged_videos_are_refused(folder) -> None:
    short, damaged = find_examples(folder)
    with pytest.raises(MediaError, match=r"12 frames at 8 fps.*17 frames need 2\.12 s"):
        load_clip(short, ClipSettings(num_frames=17, fps=8, area=1024))
    damaged.file.write_bytes(b"no video")
    with pytest.raises(MediaError):
        load_clip(damaged, SETTINGS)


@pytest.mark.parametrize("wrong", [{"num_frames": 6}, {"num_frames": 0}, {"fps": 0}, {"area": 100}, {"multiple": 0}])
def test_impossible_clip_settings_are_refused(wrong) -> None:
    with pytest.raises(ConfigError):
        ClipSettings(**({"num_frames": 5, "fps": 8, "area": 1024} | wrong))
