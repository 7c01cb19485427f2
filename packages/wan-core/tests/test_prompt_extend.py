"""Extending prompts: what is asked, of whom, and what becomes of the answer."""

import gc
import json
import re
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.tiny_qwen import only_letters, write_tiny_text_model, write_tiny_vision_model
from wan_core.errors import BackendError, CheckpointError, ConfigError, RequestError
from wan_core.llm import Message
from wan_core.llm.chat import Answer
from wan_core.presets import get_preset, list_presets
from wan_core.prompt_extend import Extender, ExtendOptions, Idea, KeptPrompts, choose_model
from wan_core.prompt_extend.extend import reduced_size
from wan_core.prompt_extend.instructions import INSTRUCTIONS, LANGUAGES, instruction_for
from wan_core.prompt_extend.methods import LOCAL_MODELS, ChosenModel

KEY = "sk-secret-0123456789"
KEYS = {"DASH_API_KEY": KEY, "OPENAI_API_KEY": KEY}
RED = Image.new("RGB", (1200, 800), "red")


class Script:
    """A language model that answers what a test says, and remembers what it was asked."""

    name = "script"

    def __init__(self, *answers: str | Exception) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[Sequence[Message], int]] = []

    def complete(self, messages: Sequence[Message], *, seed: int = 0) -> Answer:
        self.asked.append((messages, seed))
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return Answer(answer, self.name, seed)


def extender(chat: Script, *, sees: bool | None = None, **options: Any) -> Extender:
    chosen = ChosenModel(method="openai", name="m", sees=sees, open=lambda device: chat, url="http://host")
    own = {name: options.pop(name) for name in ("kept", "log") if name in options}
    return Extender(chosen, ExtendOptions(method="openai", model="m", **options), **own)


def extended(answer: str | Exception, prompt: str = "a cat", **options: Any) -> Any:
    return extender(Script(answer), **options).extend([Idea(prompt=prompt, kind="t2v")])[0]


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize(
    ("task", "images", "prompt", "instruction"),
    [
        ("t2v-A14B", 0, "a cat", "t2v"),
        ("t2v-1.3B", 0, "a cat", "t2v"),
        ("i2v-A14B", 1, "a cat", "i2v"),
        ("i2v-A14B", 0, "a cat", "i2v"),
        ("i2v-A14B", 1, " ", "i2v-empty"),
        ("i2v-14B-480P", 1, "", "i2v-empty"),
        ("ti2v-5B", 0, "a cat", "t2v"),
        ("ti2v-5B", 1, "a cat", "i2v"),
        ("ti2v-5B", 1, "", "i2v-empty"),
        ("mi2v-5B", 3, "a cat", "i2v"),
        ("poze-5B", 1, "a cat", "i2v"),
        ("sfu-1.3B", 0, "a cat", "t2v"),
        ("flf2v-14B", 2, "a cat", "flf2v"),
    ],
)
def test_the_instruction_is_that_of_the_task(
    task: str, images: int, prompt: str, instruction: str, language: str
) -> None:
    chat = Script("fine")
    idea = Idea(prompt=prompt, kind=get_preset(task).task.prompt_kind, images=(RED,) * images)
    extender(chat, language=language).extend([idea])
    assert chat.asked[0][0][0] == Message("system", (INSTRUCTIONS[instruction, language],))


def test_speech_has_an_instruction_of_its_own() -> None:
    assert instruction_for("s2v", has_images=True, is_empty=False) == "s2v"


@pytest.mark.parametrize(("kind", "images"), [("t2v", 0), ("ti2v", 0), ("i2v", 0), ("flf2v", 2), ("s2v", 1)])
def test_nothing_to_go_by_is_refused(kind: str, images: int) -> None:
    with pytest.raises(RequestError, match="prompt is empty"):
        Idea(prompt=" ", kind=kind, images=(RED,) * images)


@pytest.mark.parametrize("kind", ["", "animate"])
def test_tasks_of_fixed_prompts_are_refused(kind: str) -> None:
    with pytest.raises(RequestError, match="takes its prompts as they are"):
        Idea(prompt="a cat", kind=kind)


def test_every_preset_says_a_kind_that_is_known_or_none() -> None:
    kinds = {get_preset(name).task.prompt_kind for name in list_presets()}
    assert kinds <= {"", "t2v", "i2v", "ti2v", "flf2v", "s2v"}


@pytest.mark.parametrize(("key", "text"), INSTRUCTIONS.items(), ids=map("-".join, INSTRUCTIONS))
def test_an_instruction_asks_in_and_for_its_language(key: tuple[str, str], text: str) -> None:
    assert ("Answer in English" in text) == (key[1] == "en")
    assert bool(re.search("[\u4e00-\u9fff]", text)) == (key[1] == "zh")


def test_pictures_go_before_the_words_and_are_small() -> None:
    chat = Script("fine")
    extender(chat).extend([Idea(prompt=" a cat ", kind="i2v", images=(RED,))])
    picture, words = chat.asked[0][0][1].parts
    assert isinstance(picture, Image.Image)
    assert picture.size == (627, 418)
    assert words == "a cat"


@pytest.mark.parametrize(
    ("size", "small"),
    [((512, 512), (512, 512)), ((1280, 720), (683, 384)), ((60, 40), (60, 40)), ((4096, 1), (4096, 1))],
)
def test_pictures_are_reduced_by_area_alone(size: tuple[int, int], small: tuple[int, int]) -> None:
    assert reduced_size(*size) == small


def test_no_side_of_a_picture_is_reduced_to_nothing() -> None:
    assert reduced_size(10**7, 1)[1] == 1


def test_a_picture_without_words_is_pointed_at() -> None:
    chat = Script("fine")
    extender(chat, language="en").extend([Idea(prompt="", kind="i2v", images=(RED,))])
    assert chat.asked[0][0][1].parts[1] == "Here is the picture."


def test_a_model_that_sees_nothing_gets_the_words_alone() -> None:
    chat = Script("fine")
    found = extender(chat, sees=False).extend([Idea(prompt="a cat", kind="i2v", images=(RED,))])
    assert chat.asked[0][0][1].parts == ("a cat",)
    assert found[0].record()["images"] == 0


def test_a_model_that_sees_nothing_needs_words() -> None:
    with pytest.raises(ConfigError, match="m sees no pictures, and the prompt is empty"):
        extender(Script("fine"), sees=False).check(Idea(prompt="", kind="i2v", images=(RED,)))


@pytest.mark.parametrize(
    ("answer", "prompt"),
    [
        (" a cat\n\nruns \n", "a cat runs"),
        ('"a cat runs"', "a cat runs"),
        ("\u201ca cat runs\u201d", "a cat runs"),
        ('"a" and "b"', '"a" and "b"'),
        ("<think>so \n what</think>\na cat runs", "a cat runs"),
        ("so what, a cat?\n</think>\n\na cat runs", "a cat runs"),
    ],
)
def test_an_answer_becomes_one_line(answer: str, prompt: str) -> None:
    assert extended(answer).prompt == prompt


@pytest.mark.parametrize("answer", ["<think>hm</think>", "<think>hm, a cat", "hm</think>", '""', "a c\ufffdt"])
def test_an_answer_that_is_no_prompt_is_an_error(answer: str) -> None:
    with pytest.raises(BackendError, match="answered with nothing that is a prompt"):
        extended(answer)


def test_a_failure_is_an_error() -> None:
    with pytest.raises(BackendError, match="down"):
        extended(BackendError("down"))


def test_with_a_fallback_the_prompt_stays_and_says_so() -> None:
    notes: list[str] = []
    chosen = ChosenModel(
        method="openai", name="m", sees=None, open=lambda device: Script(BackendError("down")), url="u"
    )
    found = Extender(chosen, ExtendOptions(fallback=True), log=notes.append).extend([Idea(prompt="a cat", kind="t2v")])
    assert (found[0].prompt, found[0].record()["failed"]) == ("a cat", "down")
    assert notes == ["note: the prompt stays as it is, for it could not be extended: down"]


def test_an_empty_prompt_has_no_fallback() -> None:
    with pytest.raises(BackendError, match="down"):
        extender(Script(BackendError("down")), fallback=True).extend([Idea(prompt="", kind="i2v", images=(RED,))])


@pytest.mark.parametrize("fallback", [False, True])
def test_a_refusal_is_told_and_never_passed_over(fallback: bool) -> None:
    with pytest.raises(RequestError, match="refuses to extend this prompt"):
        extended(" [Refused].", fallback=fallback)


def test_the_record_has_the_original_and_what_made_the_new_one() -> None:
    found = extender(Script("fine"), language="en").extend([Idea(prompt="a cat", kind="t2v", seed=2**31 + 7)])
    assert found[0].record() == {
        "prompt": "a cat",
        "method": "openai",
        "model": "m",
        "language": "en",
        "seed": 7,
        "instruction": "t2v",
        "images": 0,
    }


def test_the_seed_is_the_models() -> None:
    chat = Script("fine")
    extender(chat).extend([Idea(prompt="a cat", kind="t2v", seed=11)])
    assert chat.asked[0][1] == 11


def test_equal_prompts_are_asked_once() -> None:
    chat = Script("one", "two")
    ideas = [Idea(prompt=prompt, kind="t2v", seed=seed) for seed, prompt in enumerate(["a", "b", "a"])]
    assert [each.prompt for each in extender(chat).extend(ideas)] == ["one", "two", "one"]
    assert [seed for _, seed in chat.asked] == [0, 1]


def test_what_was_kept_is_not_asked_again(tmp_path: Path) -> None:
    file = tmp_path / "kept.json"
    ideas = [Idea(prompt=prompt, kind="i2v", images=(RED,)) for prompt in ("a", "b")]
    with pytest.raises(BackendError):
        extender(Script("one", BackendError("down")), kept=KeptPrompts(file)).extend(ideas)
    chat = Script("two")
    assert [each.prompt for each in extender(chat, kept=KeptPrompts(file)).extend(ideas)] == ["one", "two"]
    assert len(chat.asked) == 1


@pytest.mark.parametrize("change", ["prompt", "picture", "language", "model"])
def test_what_is_asked_otherwise_is_not_kept(change: str, tmp_path: Path) -> None:
    kept, chat = KeptPrompts(tmp_path / "kept.json"), Script("new")
    extender(Script("old"), kept=kept).extend([Idea(prompt="a", kind="i2v", images=(RED,))])
    blue = Image.new("RGB", RED.size, "blue")
    other = extender(chat, kept=kept, **({"language": "en"} if change == "language" else {}))
    if change == "model":
        other.chosen = ChosenModel(method="openai", name="n", sees=None, open=lambda device: chat, url="http://host")
    idea = Idea(prompt="b" if change == "prompt" else "a", kind="i2v", images=(blue if change == "picture" else RED,))
    assert other.extend([idea])[0].prompt == "new"


@pytest.mark.parametrize("text", ["{", "[]", '{"format": "other", "prompts": {}}', "[" * 10_000])
def test_a_file_of_something_else_is_not_overwritten(text: str, tmp_path: Path) -> None:
    file = tmp_path / "kept.json"
    file.write_text(text)
    with pytest.raises(RequestError, match="no file of extended prompts"):
        KeptPrompts(file)
    assert file.read_text() == text


@pytest.mark.parametrize(
    ("method", "has_images", "name"),
    [
        ("dashscope", False, "qwen-plus"),
        ("dashscope", True, "qwen-vl-max"),
        ("local_qwen", False, "Qwen2.5_14B"),
        ("local_qwen", True, "QwenVL2.5_7B"),
    ],
)
def test_each_method_has_a_model_for_words_and_one_for_pictures(method: str, has_images: bool, name: str) -> None:
    found = choose_model(ExtendOptions(method=method), has_images=has_images, environ=KEYS)
    assert found.name == name
    assert KEY not in repr(found)


@pytest.mark.parametrize(
    ("options", "environ", "kind", "message"),
    [
        ({"method": "magic"}, KEYS, ConfigError, "dashscope, local_qwen, openai; got 'magic'"),
        ({"method": "openai"}, KEYS, ConfigError, "--prompt-extend-model"),
        ({"method": "openai", "model": " "}, KEYS, ConfigError, "--prompt-extend-model"),
        ({"method": "openai", "model": "m"}, {}, ConfigError, "OPENAI_API_KEY is not set"),
        ({"method": "openai", "model": "m"}, {**KEYS, "OPENAI_BASE_URL": "host"}, ConfigError, "http://"),
        ({"method": "dashscope"}, {}, ConfigError, "DASH_API_KEY is not set"),
        ({"method": "dashscope", "timeout": -1}, KEYS, ConfigError, "timeout"),
        ({"model": "Qwen2.5_15B"}, {}, ConfigError, "no local language model Qwen2.5_15B; take one of QwenVL2.5_3B"),
        ({"model": "./nowhere"}, {}, ConfigError, "no local language model"),
        ({"model": "FOLDER"}, {}, CheckpointError, "no folder of a language model"),
    ],
)
def test_what_cannot_work_is_refused_without_a_network(
    options: Mapping[str, Any], environ: Mapping[str, str], kind: type[Exception], message: str, tmp_path: Path
) -> None:
    if options.get("model") == "FOLDER":
        options = {"model": str(tmp_path)}
    with pytest.raises(kind, match=message):
        choose_model(ExtendOptions(**options), has_images=False, environ=environ)


def test_a_folder_of_another_kind_of_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ConfigError, match=r"is a bert; a language model is one of qwen2"):
        choose_model(ExtendOptions(model=str(tmp_path)), has_images=False)


@pytest.mark.parametrize(
    ("model", "sees"),
    [*((name, "VL" in name) for name in LOCAL_MODELS), ("Qwen/Qwen2.5-VL-7B-Instruct", True), ("me/mine", None)],
)
def test_names_say_what_a_model_sees(model: str, sees: bool | None) -> None:
    assert choose_model(ExtendOptions(model=model), has_images=True).sees is sees


def test_qwen_here_repeats_a_prompt_and_leaves_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from wan_core import llm

    opened = []

    def remembered(*args: Any, **options: Any) -> Any:
        chat = llm.local.LocalChat(*args, **options)  # type: ignore[attr-defined]
        opened.append(weakref.ref(chat._model))
        return chat

    folder = only_letters(write_tiny_text_model(tmp_path / "qwen"))
    monkeypatch.setattr(llm, "LocalChat", remembered)
    chosen = choose_model(ExtendOptions(model=str(folder)), has_images=False)
    assert chosen.sees is False
    one = Extender(chosen, ExtendOptions(model=str(folder)))
    prompts = [one.extend([Idea(prompt="a cat", kind="t2v", seed=seed)])[0].prompt for seed in (1, 1, 2)]
    assert prompts[0] == prompts[1] != prompts[2]
    gc.collect()
    assert [each() for each in opened] == [None] * 3


def test_qwen_vl_here_is_shown_the_whole_picture(tmp_path: Path) -> None:
    options = ExtendOptions(model=str(only_letters(write_tiny_vision_model(tmp_path / "qwen"))))
    chosen = choose_model(options, has_images=True)
    one, idea = Extender(chosen, options), Idea(prompt="a cat", kind="i2v", images=(RED,))
    assert chosen.sees
    assert [picture.size for picture in one.messages(idea)[1].pictures] == [RED.size]
    assert one.extend([idea])[0].record()["images"] == 1
