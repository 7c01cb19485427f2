"""``bindweave extract``: the language model's states of prompts and pictures, kept in files."""

from pathlib import Path
from typing import Any

import click

from wan_core import RequestError
from wan_core.cli import (
    PLACE,
    SHARE,
    ErrorReporting,
    debug_option,
    own_device,
    progress_unless,
    reporter,
    share_of_work,
)


@click.command(cls=ErrorReporting, params=[debug_option()])
@click.argument("samples", type=PLACE, metavar="SAMPLES.json|CLIPS")
@click.option("--output", "-o", type=PLACE, help="The new sample file. [default: SAMPLES_with_features.json]")
@click.option("--base-img-dir", type=PLACE, default=Path("."), help="Folder of the pictures. [default: this one]")
@click.option("--mllm", type=PLACE, help="Folder of Qwen2.5-VL-7B-Instruct; default: the bundled tiny one.")
@click.option("--out-dir", type=PLACE, default=Path("hidden_states"), show_default=True, help="Folder of the states.")
@click.option("--negative-prompt", help="Of the negative states; default: the original's.")
@click.option("--device", help="cpu, cuda, cuda:1, mps; default: the best one.")
@click.option("--dtype", default="bfloat16", show_default=True, help="In which it runs; states are kept in bfloat16.")
@click.option("--shard", type=SHARE, help="Every N-th sample from the I-th on.  [default: torchrun's, else all]")
@click.option("--quiet", is_flag=True, help="No progress and no notes.")
def extract(**values: Any) -> None:
    """Write the hidden states of each sample of SAMPLES.json, positive and negative.

    The new sample file names them. States that are there and were made of the same things stay. For 'bindweave train',
    CLIPS is a folder of clips with captions and pictures: the states of each are written beside it.
    """
    from bindweave.clip_extraction import extract_clips
    from bindweave.extraction import Extraction, extract_samples
    from bindweave.ledger import Share
    from bindweave.presets import TINY_MLLM
    from bindweave.prompts import MLLM_NEGATIVE_PROMPT
    from wan_core.runtime import resolve_device, resolve_dtype

    source, log = values["samples"], reporter(values["quiet"])
    mllm = values["mllm"] or TINY_MLLM
    if values["mllm"] is None:
        log("note: no --mllm, so the bundled tiny one makes the states, which tiny-bindweave reads")
    device = resolve_device(own_device(values["device"]))
    negative = values["negative_prompt"]
    dtype = resolve_dtype(values["dtype"], device)
    work: dict[str, Any] = {
        "share": Share(*share_of_work(values["shard"])),
        "progress": progress_unless(values["quiet"]),
        "log": log,
    }
    if source.is_dir():
        if values["output"] is not None or negative is not None:
            raise RequestError("--output and --negative-prompt are for sample files; leave them out for clips")
        extract_clips(source, mllm, device, dtype, **work)
        return
    outcome = extract_samples(
        Extraction(
            source=source,
            output=values["output"] or source.with_name(f"{source.stem}_with_features.json"),
            pictures=values["base_img_dir"],
            folder=values["out_dir"],
            mllm=mllm,
            negative_prompt=MLLM_NEGATIVE_PROMPT if negative is None else negative,
        ),
        device,
        dtype,
        **work,
    )
    outcome.conclude()
