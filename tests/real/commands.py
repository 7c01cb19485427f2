"""The command lines of ``tests/real/run.sh``: every task once on real weights, on one GPU and on many.

    commands.py MODELS GPUS OUT     one line each: name, what it needs (by commas), the command
    commands.py --check [GPUS]      whether the programs take every one of them, without weights
    commands.py --look VIDEO        what is in a video; exit status 1 where nothing is to be seen

Folders below MODELS have the names of the releases; what is not there is left out by run.sh.
"""

import shlex
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DATA = Path(__file__).resolve().parents[1] / "data"
CAT = "Two anthropomorphic cats in comfy boxing gear and bright gloves fight intensely on a spotlighted stage."
FACE, ROOM, CIRCLE = (str(DATA / name) for name in ("face.png", "room.png", "red_circle.png"))
SOUND, POSE = str(DATA / "syllables.ogg"), str(DATA / "person.npz")
PREPARED, REPLACED, PI3_FILE = "animate-prepared", "animate-prepared-scene", "--pi3-checkpoint"


@dataclass(frozen=True)
class Run:
    """One command: ``needs`` are files or folders below MODELS, ``words`` have {models} and {out} for both places.

    ``alone`` are further words on one GPU; ``shares`` says whether many GPUs can make one video together.
    """

    name: str
    needs: tuple[str, ...]
    words: tuple[str, ...]
    alone: tuple[str, ...] = ()
    shares: bool = True
    has_output: bool = True


def wan(
    task: str, folder: str, *words: str, size: str = "1280*720", needs: tuple[str, ...] = (), name: str = ""
) -> Run:
    """A run of ``wan generate`` in the spelling of the original."""
    where = ("--task", task, "--size", size, "--ckpt_dir", f"{{models}}/{folder}")
    alone = ("--offload_model", "True", "--convert_model_dtype")
    return Run(name or task, (folder, *needs), ("wan", "generate", *where, *words), alone)


ANIMATE, UNIANIMATE = "Wan2.2-Animate-14B", "UniAnimate-DiT/UniAnimate-Wan2.1-14B-Lora-12000.ckpt"


def prepared(name: str, folder: str, *words: str) -> Run:
    """The preprocessing of a driving video for Wan-Animate, into ``folder`` below OUT."""
    models = f"{ANIMATE}/process_checkpoint"
    where = ("--ckpt_path", f"{{models}}/{models}", "--video_path", "{models}/driving.mp4", "--refer_path", FACE)
    size = ("--resolution_area", "1280", "720")
    command = ("wan", "prepare-animate", *where, "--save_path", f"{{out}}/{folder}", *size, *words)
    return Run(name, (models, "driving.mp4"), command, shares=False, has_output=False)


RUNS = (
    wan("t2v-A14B", "Wan2.2-T2V-A14B", "--prompt", CAT),
    wan("i2v-A14B", "Wan2.2-I2V-A14B", "--prompt", "The room fills with morning light.", "--image", ROOM),
    wan("ti2v-5B", "Wan2.2-TI2V-5B", "--prompt", CAT, size="1280*704"),
    wan("ti2v-5B", "Wan2.2-TI2V-5B", "--prompt", "The room fills with morning light.", "--image", ROOM, size="1280*704",
        name="ti2v-5B-image"),
    wan("s2v-14B", "Wan2.2-S2V-14B", "--prompt", "A person speaks.", "--image", FACE, "--audio", SOUND,
        "--num_clip", "1", size="1024*704"),
    prepared("prepare-animate", PREPARED, "--retarget_flag"),
    wan("animate-14B", ANIMATE, "--src_root_path", f"{{out}}/{PREPARED}", "--refert_num", "1", needs=("driving.mp4",)),
    prepared("prepare-replace", REPLACED, "--replace_flag"),
    wan("animate-14B", ANIMATE, "--src_root_path", f"{{out}}/{REPLACED}", "--refert_num", "1", "--replace_flag",
        "--use_relighting_lora", needs=("driving.mp4",), name="replace-14B"),
    wan("t2v-14B", "Wan2.1-T2V-14B", "--prompt", CAT),
    wan("i2v-14B-480P", "Wan2.1-I2V-14B-480P", "--prompt", "The room fills with morning light.", "--image", ROOM,
        size="832*480"),
    wan("flf2v-14B", "Wan2.1-FLF2V-14B-720P", "--prompt", "The light changes.", "--first_frame", ROOM, "--last_frame",
        ROOM),
    wan("t2v-1.3B", "Wan2.1-T2V-1.3B", "--prompt", CAT, size="832*480"),
    Run(
        "mi2v",
        ("Wan2.2-TI2V-5B",),
        ("mi2v", "--ckpt_dir", "{models}/Wan2.2-TI2V-5B", "--images", ROOM, FACE, "--prompt", "The camera turns."),
    ),
    Run(
        "poze",
        ("Wan2.2-TI2V-5B", "Pi3/model.safetensors"),
        ("poze-infer", "--wan-ckpt-dir", "{models}/Wan2.2-TI2V-5B", PI3_FILE, "{models}/Pi3/model.safetensors",
         "--image", ROOM, "--prompt", "The camera moves to the left."),
    ),
    Run(
        "sfu",
        ("Wan2.1-T2V-1.3B", "Self-Forcing/checkpoints/self_forcing_dmd.pt"),
        ("sfu", "infer", "--ckpt-dir", "{models}/Wan2.1-T2V-1.3B", "--part",
         "dit={models}/Self-Forcing/checkpoints/self_forcing_dmd.pt", "--prompt", CAT),
    ),
    Run(
        "bindweave",
        ("Wan2.1-I2V-14B-720P-Diffusers", "BindWeave_14B", "Qwen2.5-VL-7B-Instruct"),
        ("bindweave", "run", "--ckpt-dir", "{models}/Wan2.1-I2V-14B-720P-Diffusers", "--dit", "{models}/BindWeave_14B",
         "--mllm", "{models}/Qwen2.5-VL-7B-Instruct", "--image", FACE, "--prompt", "A person walks along the beach."),
    ),
    Run(
        "sfu-teacher",
        ("Wan2.1-I2V-14B-720P", UNIANIMATE),
        ("sfu", "teacher", "--ckpt-dir", "{models}/Wan2.1-I2V-14B-720P", "--lora", f"{{models}}/{UNIANIMATE}",
         "--image", FACE, "--pose", POSE, "--pose-mode", "pose_only", "--prompt", "A person moves."),
    ),
)  # fmt: skip


def commands(models: str, gpus: int, out: str) -> Iterator[tuple[str, tuple[str, ...], list[str]]]:
    """Names, needs and words of all runs: on one GPU, and where there are several on all of them."""
    for run in RUNS:
        words = [word.format(models=models, out=out) for word in run.words]
        yield run.name, run.needs, [*words, *run.alone, *_written(run, out, run.name)]
        if gpus > 1 and run.shares:
            name = f"{run.name}-on-{gpus}"
            together = ["--nproc", str(gpus), "--dit_fsdp", "--t5_fsdp", "--ulysses_size", str(gpus)]
            yield name, run.needs, [*words, *together, *_written(run, out, name)]


def _written(run: Run, out: str, name: str) -> list[str]:
    return ["--output", f"{out}/{name}.mp4", "--base_seed", "42"] if run.has_output else []


def check(gpus: int) -> int:
    """Give every command to its program as a plan on the CPU; tell those that it does not take. The exit status."""
    from click.testing import CliRunner

    refused = 0
    for name, _, words in commands("no-models", gpus, "no-output"):
        result = CliRunner().invoke(_programs()[words[0]], planned(words))
        # There are no weights, and no folder of an earlier run; with --help values are not looked at, but names are.
        if result.exit_code not in (0, 3):
            refused += 1
            print(f"{name}: exit status {result.exit_code}: {result.output.strip().splitlines()[-1:]}")
        else:
            print(f"{name}: ok")
    return min(refused, 1)


def planned(words: list[str]) -> list[str]:
    """The words of a plan, or of the help of a command whose input another one makes."""
    rest = words[1:]
    for option in (PI3_FILE, "--lora"):  # these files are looked for before weights are
        if option in rest:
            index = rest.index(option)
            rest = [*rest[:index], *rest[index + 2 :]]
    is_later = any(PREPARED in word for word in words)
    return [*rest, "--help"] if is_later else [*rest, "--dry-run", "--device", "cpu", "--quiet"]


def _programs() -> Mapping[str, Any]:
    from bindweave.cli import bindweave
    from poze.cli.infer import infer
    from selfforcing_unianimate.cli import sfu
    from wan_core.cli import wan as wan_command
    from wan_mi2v.cli import mi2v

    return {"wan": wan_command, "mi2v": mi2v, "poze-infer": infer, "sfu": sfu, "bindweave": bindweave}


def look(path: str) -> int:
    """Tell size, frames and rate of a video, which is read to its end; 1 on errors, and where it has but one colour."""
    from wan_core.errors import WanError
    from wan_core.media import probe_video, stream_video

    try:
        info, count, lowest, highest = probe_video(path), 0, 255, 0
        for frame in stream_video(path):
            count += 1
            lowest, highest = min(lowest, int(frame.min())), max(highest, int(frame.max()))
    except WanError as error:
        print(error)
        return 1
    if highest - lowest < 16:
        print("nothing is to be seen: all frames have one colour")
        return 1
    print(f"{info.width}x{info.height}, {count} frames, {info.fps:g} fps")
    return 0


if __name__ == "__main__":
    if sys.argv[1] == "--look":
        sys.exit(look(sys.argv[2]))
    if sys.argv[1] == "--check":
        sys.exit(check(int((sys.argv[2:] or ["8"])[0])))
    for name, needs, words in commands(sys.argv[1], int(sys.argv[2]), sys.argv[3]):
        print(name, ",".join(needs), shlex.join(words), sep="\t")
