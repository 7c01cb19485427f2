"""From what the GPU check wrote to the table of docs/performance.md."""

from collections.abc import Iterator, Mapping
from typing import Any


def table(report: Mapping[str, Any]) -> str:
    """Markdown: the card and the date, a row for everything that was timed, the order of the attention kernels.

    Sections that failed or were left out are named below it.
    """
    card = f"{report['device']}, torch {report['torch']}, {report['date']}"
    if report["tiny"]:
        card += "; a dry run with tiny sizes, no measurement"
    lines = [f"### {card}", "", "| what | s | TFLOP/s | peak GB | |", "|---|---|---|---|---|"]
    left_out = []
    for name, found in report["sections"].items():
        if isinstance(found, str) or "failed" in found:
            left_out.append(f"- {name}: {found if isinstance(found, str) else found['failed']}")
            continue
        lines += [_row(*each) for each in _rows(name, found)]
    machine = report["sections"].get("machine")
    if isinstance(machine, Mapping) and "failed" not in machine:
        lines += ["", "The machine: " + ", ".join(f"{key} {value}" for key, value in machine.items()) + "."]
    kernels = report["sections"].get("attention")
    if isinstance(kernels, Mapping) and "order" in kernels:
        lines += ["", f"Attention, the fastest first: {', '.join(kernels['order'])}; `auto` took {kernels['auto']}."]
    return "\n".join([*lines, *([""] if left_out else []), *left_out]) + "\n"


def _rows(name: str, found: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any], str]]:
    """What was timed in a section: itself, its parts, and theirs."""
    if "s" in found:
        yield name, found, _note(found)
    for label, part in found.items():
        if isinstance(part, Mapping):
            yield from _rows(f"{name} {label}", part)


def _note(found: Mapping[str, Any]) -> str:
    known = {"difference": "differs by", "first_s": "first s", "latents_s": "latents after s", "frames": "frames"}
    return ", ".join(f"{text} {found[key]}" for key, text in known.items() if key in found)


def _row(name: str, found: Mapping[str, Any], note: str) -> str:
    cells = (name, *(found.get(key) for key in ("s", "tflops", "peak_gb")), note)
    return "| " + " | ".join("" if cell is None else str(cell) for cell in cells) + " |"
