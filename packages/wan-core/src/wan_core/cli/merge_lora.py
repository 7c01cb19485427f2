"""``wan merge-lora SRC OUT --lora ...``: weights with LoRAs merged in, written as ``wan convert`` writes them."""

from pathlib import Path
from typing import Any

import click

from wan_core.cli.convert import write_again, writing_options
from wan_core.cli.group import PLACE, ErrorReporting
from wan_core.cli.loras import lora_options
from wan_core.errors import RequestError


@click.command("merge-lora", cls=ErrorReporting)
@click.argument("source", metavar="SRC", type=PLACE)
@click.argument("out", type=PLACE)
def merge_lora(source: Path, out: Path, **values: Any) -> None:
    """Write the weights in SRC to OUT with LoRAs merged into the transformers, in the layout of SRC.

    SRC is a file, the folder of one network, or a whole checkpoint folder, and is never written to. OUT appears when it
    is whole. 'wan convert' takes --lora, too, and changes the layout.
    """
    if not values["loras"]:
        raise RequestError("there is nothing to merge; name a LoRA with --lora PATH or --lora PATH:STRENGTH")
    write_again(source, out, None, values)


merge_lora.params += [*lora_options(), *writing_options()]
