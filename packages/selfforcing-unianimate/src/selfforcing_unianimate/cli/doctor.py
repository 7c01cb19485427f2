"""``sfu doctor``: what this machine has, level 0 of the testing ladder."""

import json
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import click

from wan_core.cli import ErrorReporting, debug_option

PACKAGES = (
    "wan-core",
    "torch",
    "transformers",
    "av",
    "onnxruntime",
    "opencv-python-headless",
    "torchvision",
    "flash-attn",
)


@click.command(cls=ErrorReporting, params=[debug_option()])
@click.option("--json", "as_json", is_flag=True, help="Print machine-readable JSON.")
def doctor(as_json: bool) -> None:
    """Say what this machine has: versions, the device and dtype that would be taken, and what is not installed."""
    report = machine_report()
    if as_json:
        click.echo(json.dumps(report, indent=2))
        return
    for name, value in report.items():
        click.echo(f"{name:<24} {value}")


def machine_report() -> dict[str, Any]:
    """Versions of the packages (None where one is missing), the device, its memory in bytes, dtype and attention."""
    from wan_core.runtime import choose_attention_backend, device_facts, resolve_device, resolve_dtype

    device = resolve_device()
    return {
        "python": platform.python_version(),
        **{package: _version(package) for package in PACKAGES},
        **device_facts(device),
        "dtype": str(resolve_dtype(None, device)).removeprefix("torch."),
        "attention": choose_attention_backend("auto", device).name,
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
