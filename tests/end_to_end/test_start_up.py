"""What needs no tensor imports no torch: help, lists, and words that are wrong, with all project packages installed."""

import json
import os
import subprocess
import sys

import pytest

HEAVY = ("torch", "numpy", "PIL", "av", "transformers")
WATCHED = """
import json, sys
from {module} import main
sys.argv = sys.argv[1:]
try:
    main()
finally:
    loaded = [name for name in json.loads({heavy!r}) if name in sys.modules]
    print("\\nloaded:", *loaded, file=sys.stderr)
"""

# Words after `wan`: exit code, and what the output must have.
LIGHT = {
    "--help": (0, "generate"),
    "generate --help": (0, "tiny-poze"),
    "presets": (0, "mi2v-5B"),
    "presets --json": (0, "Wan-AI/Wan2.2-T2V-A14B"),
    "generate nonsense": (2, "there is no model 'nonsense'"),
    "generate --task nonsense --prompt p": (2, "there is no model 'nonsense'"),
    "generate tiny-t2v --help": (0, "--sample-solver [unipc|dpm++|euler|renoise]"),
    "generate flf2v-14B --help": (0, "--first-frame"),
    "generate mi2v-5B --help": (0, "--images PATH..."),
    "generate poze-5B --help": (0, "--pi3-checkpoint"),
    "generate tiny-t2v --frobnicate": (2, "--frobnicate"),
    "generate --prompt p --sample-solver heun": (2, "unipc"),
    "generate --prompt p --size 1280": (2, "width*height"),
    "generate --prompt p --frame-num 80": (2, "77 and 81"),
    "generate --prompt p --size 65*64": (2, "64 and 72"),
    "generate i2v-A14B --prompt p --ckpt-dir nowhere --fps 0": (2, "fps"),
    "generate --prompt p --prompt-extend-model m": (2, "nothing without --use-prompt-extend"),
    "prepare-animate --help": (0, "--retarget-flag"),
    "extend-prompt --help": (0, "--prompt-extend-method [dashscope|local_qwen|openai]"),
    "extend-prompt --prompt p --prompt-extend-method openai": (2, "--prompt-extend-model"),
    "train --help": (0, "--lora-rank"),
    "cache --help": (0, "--shard-size"),
    "convert --help": (0, "--dtype [float32|bfloat16|float16]"),
    "merge-lora --help": (0, "--shard-size"),
    "train --frobnicate": (2, "--frobnicate"),
    "download --help": (0, "MODEL"),
}
# Modules of other commands: what their help must have.
PROJECTS = {
    "wan_mi2v.cli": "--images",
    "poze.cli": "finetune",
    "poze.cli.infer": "--use-pi3",
    "poze.cli.finetune": "--gt-points",
    "pi3.cli": "reconstruct",
    "selfforcing_unianimate.cli": "infer",
    "bindweave.cli": "infer",
    "selfforcing_unianimate.cli.teacher": "--pose-weights-path",
    "selfforcing_unianimate.cli.make_targets": "--student-steps",
}


def run(code: str, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COLUMNS": "120"}
    return subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, check=False, env=environment
    )


def watched(module: str, *words: str) -> subprocess.CompletedProcess[str]:
    """The command whose ``main`` a module has; the last line of its errors names the heavy packages it loaded."""
    return run(WATCHED.format(module=module, heavy=json.dumps(HEAVY)), module, *words)


@pytest.mark.parametrize("words", LIGHT)
def test_a_command_without_tensors_imports_no_torch(words: str) -> None:
    exit_code, expected = LIGHT[words]
    done = watched("wan_core.cli", *words.split())
    assert done.returncode == exit_code, done.stderr
    assert expected in done.stdout + done.stderr
    assert done.stderr.splitlines()[-1] == "loaded:", done.stderr


@pytest.mark.parametrize("module", PROJECTS)
def test_the_help_of_a_projects_command_imports_no_torch(module: str) -> None:
    done = watched(module, "--help")
    assert done.returncode == 0, done.stderr
    assert PROJECTS[module] in done.stdout
    assert done.stderr.splitlines()[-1] == "loaded:", done.stderr


def test_the_help_of_distillation_imports_no_torch() -> None:
    done = watched("selfforcing_unianimate.cli", "distill", "--help")
    assert done.returncode == 0, done.stderr
    assert "--critic-steps" in done.stdout
    assert done.stderr.splitlines()[-1] == "loaded:", done.stderr


def test_an_image_that_cannot_be_read_imports_no_torch() -> None:
    done = watched("wan_core.cli", "generate", "--prompt", "p", "--image", __file__)
    assert done.returncode == 4
    assert "no picture" in done.stderr
    assert done.stderr.splitlines()[-1] == "loaded: numpy PIL", done.stderr


def test_the_watch_sees_what_is_loaded() -> None:
    done = watched("wan_core.cli", "generate", "--prompt", "p", "--device", "abacus")
    assert done.returncode == 2
    assert "torch" in done.stderr.splitlines()[-1]


def test_an_export_costs_what_it_needs() -> None:
    code = """
import sys
from wan_core import checkpoints, media, models, sampling, tasks, training
print(models.WanDiTConfig(), models.UMT5_XXL, models.CLIP_VIT_H14, models.WAN22_VAE.z_dim, media.LatentSpec(16))
print(checkpoints.DIT.where, checkpoints.Part, sampling.SOLVERS)
print(training.TrainSettings(lora_rank=4).lora(), training.LoopSettings(steps=1))
print(tasks.TextToVideo(), tasks.I2VRequest(prompt="p").record())
print("torch" in sys.modules)
models.WanDiT
print("torch" in sys.modules)
"""
    assert run(code).stdout.split("\n")[-3:-1] == ["False", "True"]
