"""Distillation in the world of stick persons: ``python -m tools.tiny.distill --stage NAME --work FOLDER``.

Stages, in this order: ``clips`` and ``features`` (what is trained on), ``teacher``, ``lora``, ``merge``,
``targets``, ``ode``, ``dmd``, ``mix``, ``evaluate``, ``export``. Each goes on from its newest checkpoint in ``--work``.
"""

from __future__ import annotations

import argparse
import os
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from selfforcing_unianimate import TINY_SFU
from selfforcing_unianimate.cli.make_targets import make_targets
from selfforcing_unianimate.cli.merge_lora import merge_lora
from selfforcing_unianimate.distillation.targets import Targets
from tools.tiny import family, person_report, together
from tools.tiny.dit_stage import channel_weights, use_plain_attention
from tools.tiny.people import STYLES
from tools.tiny.person_data import PoseTrunk, computed_trunk, latent_clips, pictures_of, pose_features, write_pictures
from tools.tiny.person_export import write_network, write_pose_encoder, write_wanted
from tools.tiny.person_stages import PosedDiT, Teaching, caption_states, widened_dit, with_lora
from tools.tiny.person_students import Matching, Pair, Regression, Shown, new_student
from tools.tiny.recipe import recipe_parser, run_recipe
from tools.tiny.train import Reporter
from tools.tiny.weights import read_tensors
from wan_core.checkpoints import MemorySource, write_file
from wan_core.runtime import launched
from wan_core.training import (
    AveragedWeights,
    Cache,
    CheckpointFolder,
    LoopSettings,
    Stage,
    WeightUpdate,
    build_optimizers,
    distributed_ranks,
    lora_tensors,
    train,
)

TEACHER_STEPS, LORA_STEPS, ODE_STEPS, DMD_STEPS, BATCH = 600, 60, 200, 170, 15
TARGETS, DMD_BATCH = 144, 9
DMD_SHARE = 0.4
T = TypeVar("T", bound=nn.Module)
_AVERAGES = {"teacher": 0.99, "lora": 0.95}
teacher_settings = partial(LoopSettings, warmup_steps=10, decay_share=0.5, final_rate=0.03, log_steps=20)
dmd_settings = partial(LoopSettings, warmup_steps=10, decay_share=0.3, final_rate=0.1, log_steps=10)


def run_clips(arguments: argparse.Namespace) -> None:
    """Stage "clips": latents of training clips and pictures."""
    vae = family.load_bundled("vae")
    write_pictures(arguments.work, vae)
    for style in STYLES:
        latent_clips(arguments.work, style, vae)


def keep(model: nn.Module, path: Path) -> None:
    """Write what a stage made, for the next one."""
    write_file(MemorySource(model.state_dict()), path, metadata={})


def kept(model: T, path: Path) -> T:
    """A model with what a stage wrote."""
    model.load_state_dict(read_tensors(path))
    return model


def trunk_of(work: Path) -> PoseTrunk:
    """The computed layers of the pose encoder, from a file once they are there."""
    path = work / "trunk.safetensors"
    if not path.exists():
        keep(computed_trunk(), path)
    return kept(PoseTrunk(), path)


def run_features(arguments: argparse.Namespace) -> None:
    """Stage "features": what the trunk makes of the skeletons of every training clip."""
    trunk = trunk_of(arguments.work)
    part = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    for style in STYLES:
        pose_features(arguments.work, style, trunk, part)


def run_teaching(arguments: argparse.Namespace) -> None:
    """Stages "teacher" and "lora", in one process or in two."""
    work, name = arguments.work, arguments.stage
    is_teacher = name == "teacher"
    style = STYLES[0] if is_teacher else STYLES[1]
    torch.manual_seed(0)
    vae, encoder = family.load_frozen()
    model = PosedDiT(widened_dit())
    if not is_teacher:
        model = with_lora(kept(model, work / "teacher.safetensors"))
    average = AveragedWeights(model, _AVERAGES[name])
    use_plain_attention(model.dit)
    with distributed_ranks(launched(), torch.device("cpu")) as ranks:
        stage = Teaching(
            model=model,
            style=style,
            clips=Cache(work / f"{style}-latents"),
            features=Cache(work / f"{style}-features"),
            pictures=pictures_of(work),
            captions=caption_states(encoder),
            weights=channel_weights(vae),
            batch=BATCH // ranks.world,
            rank=ranks.rank,
        )
        if ranks.world > 1:
            together.average_gradients(model)
        folder = CheckpointFolder if ranks.is_first else together.FollowerFolder
        optimizers = build_optimizers(model, "muon", 0.01 if is_teacher else 0.05)
        result = train(
            Stage.of(model, optimizers, stage.loss, average),
            teacher_settings(steps=arguments.steps or (TEACHER_STEPS if is_teacher else LORA_STEPS)),
            checkpoints=folder(work / name),
            report=Reporter(),
            rank=ranks.rank,
            reduce=ranks.reduce,
        )
        if ranks.is_first and not result.was_interrupted:
            average.exchange(model)
            if is_teacher:
                keep(model, work / "teacher.safetensors")
            else:
                write_file(MemorySource(lora_tensors(model.dit)), work / "lora.safetensors", metadata={})


def taught(work: Path, merged: bool = True) -> PosedDiT:
    """The teacher, with its LoRA merged or before that."""
    model = kept(PosedDiT(widened_dit()), work / "teacher.safetensors")
    if merged:
        kept(model.dit, work / "merged.safetensors")
    return model


def run_merge(arguments: argparse.Namespace) -> None:
    """Stage "merge": the LoRA goes into the teacher, whose files are the package's from now on."""
    work = arguments.work
    keep(taught(work, merged=False).dit, work / "teacher-dit.safetensors")
    words = ["--base", work / "teacher-dit.safetensors", "--lora", work / "lora.safetensors"]
    merge_lora.main([*map(str, words), "--out", str(work / "merged.safetensors")], standalone_mode=False)
    write_network("teacher", taught(work).dit, "stages teacher and lora", {})
    write_pose_encoder(trunk_of(work), taught(work))


def run_targets(arguments: argparse.Namespace) -> None:
    """Stage "targets": what the teacher makes of poses of their own, by ``sfu make-targets``."""
    lines = arguments.work / "wanted.jsonl"
    if not lines.exists():
        write_wanted(lines, arguments.work / "wanted", TARGETS)
    out = arguments.work / "targets"
    steps = [
        "--sample-steps",
        "20",
        "--student-shift",
        str(TINY_SFU.sampling.flow_shift),
        "--pose-mode",
        "pose_only",
        "--quiet",
    ]
    make_targets.main([str(lines), str(out), "--model", "tiny-unianimate", *steps], standalone_mode=False)


def students_data(work: Path) -> tuple[Targets, Shown]:
    """The targets, and the conditions of each."""
    targets = Targets(work / "targets")
    return targets, Shown.of(targets, trunk_of(work), taught(work))


def run_ode(arguments: argparse.Namespace) -> None:
    """Stage "ode": the student learns the ends of the teacher's paths."""
    work = arguments.work
    targets, shown = students_data(work)
    student = new_student(taught(work).dit)
    use_plain_attention(student)
    average = AveragedWeights(student, 0.98)
    with distributed_ranks(launched(), torch.device("cpu")) as ranks:
        if ranks.world > 1:
            together.average_gradients(student)
        stage = Regression(
            student=student,
            shown=shown,
            states=torch.stack([targets[number].states for number in range(len(targets))]),
            clean=torch.stack([targets[number].latents for number in range(len(targets))]),
            batch=BATCH // ranks.world,
            rank=ranks.rank,
        )
        folder = CheckpointFolder if ranks.is_first else together.FollowerFolder
        result = train(
            Stage.of(student, build_optimizers(student, "muon", 0.006), stage.loss, average),
            teacher_settings(steps=arguments.steps or ODE_STEPS),
            checkpoints=folder(work / "ode"),
            report=Reporter(),
            rank=ranks.rank,
            reduce=ranks.reduce,
        )
        if ranks.is_first and not result.was_interrupted:
            average.exchange(student)
            keep(student, work / "ode.safetensors")


def run_dmd(arguments: argparse.Namespace) -> None:
    """Stage "dmd": the student learns from the scores of what it makes itself."""
    work = arguments.work
    _, shown = students_data(work)
    _, encoder = family.load_frozen()
    student, critic, teacher = new_student(taught(work).dit), taught(work).dit, taught(work).dit
    kept(student, work / "ode.safetensors")
    teacher.requires_grad_(False)
    for network in (student, critic, teacher):
        use_plain_attention(network)
    pair = Pair(student, critic)
    average = AveragedWeights(pair, 0.95)
    with distributed_ranks(launched(), torch.device("cpu")) as ranks:
        if ranks.world > 1:
            together.average_gradients(pair)
        stage = Matching(
            student=student,
            critic=critic,
            teacher=teacher,
            shown=shown,
            empty=caption_states(encoder)[""],
            batch=DMD_BATCH // ranks.world,
            rank=ranks.rank,
        )
        updates = [
            WeightUpdate(
                loss=stage.student_loss, optimizers=build_optimizers(student, "muon", 2e-3), name="student", every=2
            ),
            WeightUpdate(loss=stage.critic_loss, optimizers=build_optimizers(critic, "muon", 4e-3), name="critic"),
        ]
        folder = CheckpointFolder if ranks.is_first else together.FollowerFolder
        result = train(
            Stage(model=pair, updates=updates, average=average),
            dmd_settings(steps=arguments.steps or DMD_STEPS),
            checkpoints=folder(work / "dmd"),
            report=Reporter(),
            rank=ranks.rank,
            reduce=ranks.reduce,
        )
        if ranks.is_first and not result.was_interrupted:
            average.exchange(pair)
            keep(student, work / "dmd.safetensors")


def run_mix(arguments: argparse.Namespace) -> None:
    """Stage "mix": the student is a mean of the weights before and after self-forcing, which is steadier than these."""
    before, after = (read_tensors(arguments.work / f"{name}.safetensors") for name in ("ode", "dmd"))
    mixed = {name: torch.lerp(before[name], after[name], DMD_SHARE) for name in before}
    write_file(MemorySource(mixed), arguments.work / "student.safetensors", metadata={})


def run_evaluate(arguments: argparse.Namespace) -> None:
    """Stage "evaluate": some arms of `tools.tiny.person_report`, or all and the long videos."""
    work = arguments.work
    vae, encoder = family.load_frozen()
    model = taught(work)
    parts: dict[str, Any] = {"model": model, "vae": vae, "captions": caption_states(encoder), "trunk": trunk_of(work)}
    for name in ("ode", "dmd", "student"):
        parts[name] = kept(new_student(model.dit), work / f"{name}.safetensors")
    if arguments.arm == "long":
        person_report.evaluate_long(work, parts)
        return
    arms = person_report.ARMS if arguments.arm is None else (arguments.arm,)
    person_report.evaluate(work, arms, parts, arguments.count)


def run_export(arguments: argparse.Namespace) -> None:
    """Stage "export": table and sheet into the work folder, teacher and student with their scores into the package."""
    work = arguments.work
    scores = person_report.summary(work)
    model = taught(work)
    write_network("teacher", model.dit, "stages teacher and lora", scores["teacher"])
    student = kept(new_student(model.dit), work / "student.safetensors")
    write_network("student", student, "stages ode, dmd and mix", scores["student"])
    write_pose_encoder(trunk_of(work), model)
    person_report.write_table(work)
    person_report.write_sheet(work)


RUNS = {
    "clips": run_clips,
    "features": run_features,
    "teacher": run_teaching,
    "lora": run_teaching,
    "merge": run_merge,
    "targets": run_targets,
    "ode": run_ode,
    "dmd": run_dmd,
    "mix": run_mix,
    "evaluate": run_evaluate,
    "export": run_export,
}


def main() -> None:
    """Run one stage."""
    parser = recipe_parser(__doc__, RUNS)
    parser.add_argument("--arm", choices=[*person_report.ARMS, "long"], help="what to evaluate")
    parser.add_argument("--count", type=int, default=60, help="held-back clips of an evaluation")
    run_recipe("tools.tiny.distill", parser, RUNS)


if __name__ == "__main__":
    main()
