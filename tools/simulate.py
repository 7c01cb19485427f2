"""Runs on a GPU that is not there: memory, kernels, traffic, FLOPs, copies and waits of each phase, counted exactly.

``simulate.py ti2v-5B [--size 1280*704] [--frame-num 121]`` needs no GPU and no weights. ``--forward`` counts one
forward of the network and the coding of a clip by the autoencoder, ``--peer`` diffusers' beside them; ``--check``
compares those of all presets with what was stored: none may take more bytes, kernels or waits; ``--write`` stores them.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

STORED = Path(__file__).with_suffix(".json")
Rows = Mapping[str, Mapping[str, int]]
MAY_NOT_RISE = ("kernels", "traffic", "float32_traffic", "flops", "waits")


@dataclass(frozen=True)
class GPU:
    """Dense FLOP/s by dtype (bfloat16 with float32 sums), bytes/s and bytes of memory; and who says so."""

    bfloat16: float
    tf32: float
    float32: float
    bandwidth: float
    memory: float
    source: str

    def flops_per_second(self, dtype: str) -> float:
        """The rate of a dtype."""
        return {"bfloat16": self.bfloat16, "float16": self.bfloat16, "tf32": self.tf32}.get(dtype, self.float32)


GPUS = {
    "H200": GPU(989.5e12, 494.5e12, 67e12, 4.8e12, 141e9, "NVIDIA H200 datasheet, SXM"),
    "H100": GPU(989.5e12, 494.5e12, 67e12, 3.35e12, 80e9, "NVIDIA H100 datasheet, SXM"),
    "A100": GPU(312e12, 156e12, 19.5e12, 2.039e12, 80e9, "NVIDIA A100 80GB datasheet, SXM"),
    "RTX4090": GPU(165.2e12, 82.6e12, 82.6e12, 1.008e12, 24e9, "NVIDIA Ada architecture whitepaper"),
}


def run_report(options: argparse.Namespace) -> dict[str, Any]:
    """The phases of a whole run as plain data; counts of all steps follow from those of the simulated ones."""
    from tools.simulated_runs import simulate
    from wan_core.presets import get_preset

    gpu = GPUS[options.gpu]
    preset = get_preset(options.preset)
    settings = {"num_frames": options.frame_num, **dict(zip(("width", "height"), options.size or (), strict=False))}
    phases = simulate(
        preset,
        {name: value for name, value in settings.items() if value is not None},
        steps=options.steps,
        memory=int(gpu.memory),
        offload=None if options.offload is None else options.offload != "False",
        in_blocks=options.offload == "blocks",
        text_on_cpu=options.t5_cpu,
        with_image=options.image,
        clips=options.clips,
        tiling=options.vae_tiling,
    )
    rows = []
    for phase in phases:
        counts, scale = phase.counts, phase.scale
        rows.append(
            {
                "phase": phase.name,
                "steps": phase.steps,
                "simulated_steps": phase.simulated_steps,
                "kernels": round(counts.kernels * scale),
                "traffic": round(counts.traffic * scale),
                "float32_share": round(counts.float32_share, 4),
                "flops": {dtype: round(number * scale) for dtype, number in sorted(counts.flops.items())},
                "attention": {shape: round(number * scale) for shape, number in sorted(counts.attention.items())},
                "to_device": phase.to_device,
                "to_host": counts.to_host,
                "waits": dict(sorted(counts.waits.items())),
                "peak": counts.peak,
                "planned_weights": phase.planned_weights,
                "planned_peak": phase.planned_peak,
                "seconds": round(counts.seconds(gpu.flops_per_second, gpu.bandwidth) * scale, 3),
            }
        )
    return {"preset": options.preset, "gpu": options.gpu, "gpu_source": gpu.source, "phases": rows}


def run_table(report: Mapping[str, Any]) -> str:
    """For people: GB, PFLOP and seconds."""
    lines = [
        "| phase | steps | kernels | traffic, GB | float32 | PFLOP | to device, GB | to host, GB | waits "
        "| peak, GB | planned, GB | roofline, s |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in report["phases"]:
        flops = " + ".join(f"{number / 1e15:.4g} {dtype}" for dtype, number in row["flops"].items())
        cells = [
            row["phase"],
            row["steps"],
            row["kernels"],
            f"{row['traffic'] / 1e9:.4g}",
            f"{row['float32_share']:.0%}",
            flops,
            f"{row['to_device'] / 1e9:.3g}",
            f"{row['to_host'] / 1e9:.3g}",
            sum(row["waits"].values()),
            f"{row['peak'] / 1e9:.1f}",
            f"{row['planned_peak'] / 1e9:.1f}" if row["planned_peak"] else "",
            f"{row['seconds']:.3g}",
        ]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    shapes: Counter[str] = Counter()
    for row in report["phases"]:
        shapes.update(row["attention"])
    lines += ["", *(f"attention {shape}: {count} times" for shape, count in shapes.most_common())]
    total = sum(row["seconds"] for row in report["phases"])
    return "\n".join([*lines, f"roofline of {report['gpu']} ({report['gpu_source']}): {total:.4g} s; not measured"])


def forward_report(options: argparse.Namespace) -> dict[str, Any]:
    """One forward of the network, the clip decoded and encoded; those of diffusers with ``--peer``."""
    from tools.simulated_coding import coding, our_coding, their_coding
    from tools.simulated_forwards import forward, our_forward, their_forward, usual_shapes
    from wan_core.presets import get_preset

    preset = get_preset(options.preset)
    shapes = replace(usual_shapes(preset), per_frame=options.image and preset.task.has_clean_frames)
    if options.size:
        shapes = replace(shapes, width=options.size[0], height=options.size[1])
    if options.frame_num:
        shapes = replace(shapes, num_frames=options.frame_num)
    sides = [("ours", our_forward, our_coding), ("diffusers", their_forward, their_coding)]
    found: dict[str, Any] = {"a forward": {}, "decoding": {}, "encoding": {}}
    for name, network, autoencoder in sides if options.peer else sides[:1]:
        found["a forward"][name] = asdict(forward(preset, shapes, network))
        for what in ("decoding", "encoding"):
            found[what][name] = asdict(coding(preset, shapes, autoencoder, encodes=what == "encoding"))
    return found


def forward_table(report: Mapping[str, Mapping[str, Mapping[str, int]]]) -> str:
    """One line a measure, with the ratio where there are two sides."""
    lines = []
    for what, counts in report.items():
        sides = list(counts)
        lines += ["", f"| {what} | {' | '.join(sides)} | ratio |", "|---" * (len(sides) + 2) + "|"]
        for name in counts[sides[0]]:
            values = [counts[side][name] for side in sides]
            ratio = f"{values[0] / values[1]:.3f}" if len(values) > 1 and values[1] else ""
            lines.append(f"| {name.replace('_', ' ')} | {' | '.join(f'{value:,}' for value in values)} | {ratio} |")
    return "\n".join(lines[1:])


def differences(
    found: Mapping[str, Mapping[str, int]], stored: Mapping[str, Mapping[str, int]]
) -> tuple[list[str], list[str]]:
    """What rose against the stored counts, or is not stored; and what fell."""
    rose = [f"{name} is not stored" for name in found if name not in stored]
    rose += [f"{name} is stored and not there" for name in stored if name not in found]
    fell = []
    for name in found.keys() & stored.keys():
        for what in MAY_NOT_RISE:
            new, old = found[name][what], stored[name][what]
            if new != old:
                (rose if new > old else fell).append(f"{name}: {what.replace('_', ' ')} {old:,} -> {new:,}")
    return sorted(rose), sorted(fell)


def check(*, write: bool) -> int:
    """Compare forwards and codings of all presets with the stored ones, or store them; 1 when a count rose."""
    from tools.simulated_coding import all_codings
    from tools.simulated_forwards import all_forwards

    found = {**all_forwards(), **all_codings()}
    if write:
        STORED.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
        return 0
    rose, fell = differences(found, json.loads(STORED.read_text()))
    for line in fell:
        print(f"fell, store it with --write: {line}")
    for line in rose:
        print(f"rose: {line}")
    return 1 if rose else 0


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.replace("x", "*").partition("*")
    return int(width), int(height)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("preset", nargs="?", help="a preset of any task")
    parser.add_argument("--size", type=_size, metavar="WIDTH*HEIGHT")
    parser.add_argument("--frame-num", type=int)
    parser.add_argument("--image", action="store_true", help="begin with an image where the preset may")
    parser.add_argument("--offload", choices=("True", "False", "blocks"), help="as wan generate --offload_model")
    parser.add_argument("--t5-cpu", action="store_true")
    parser.add_argument("--clips", type=int, default=2, help="of a task that makes several (default 2)")
    parser.add_argument(
        "--vae-tiling", default="auto", help="as wan generate --vae-tiling: auto, on, off, encode, decode"
    )
    parser.add_argument("--steps", type=int, default=4, help="steps to simulate, the others follow (default 4)")
    parser.add_argument("--gpu", choices=GPUS, default="H200", help="whose memory and roofline (default H200)")
    parser.add_argument("--forward", action="store_true", help="one forward, and a clip coded, alone")
    parser.add_argument("--peer", action="store_true", help="with --forward: those of diffusers beside them")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers there too")
    parser.add_argument("--check", action="store_true", help="no forward may take more than is stored")
    parser.add_argument("--write", action="store_true", help="store the counts that --check compares with")
    options = parser.parse_args()
    if not (options.preset or options.check or options.write):
        parser.error("name a preset, or take --check")
    return options


def main() -> int:
    """Print the tables, and write the JSON; 1 when a count rose, 2 and more for what cannot run."""
    from wan_core.errors import WanError

    options = arguments()
    if options.check or options.write:
        return check(write=options.write)
    try:
        report: dict[str, Any] = {}
        if options.forward or options.peer:
            report["forward"] = forward_report(options)
            print(forward_table(report["forward"]))
        if not options.forward:
            report |= run_report(options)
            print(run_table(report))
    except WanError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
