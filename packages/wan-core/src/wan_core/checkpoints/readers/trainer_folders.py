"""Checkpoints that trainers write in pieces, one a process: refused with the command that puts them together."""

import re
from collections.abc import Collection
from pathlib import Path

from wan_core.errors import CheckpointError

DCP_ENDING = ".distcp"
_ZERO = re.compile(r"(?:bf16_|fp16_)?zero_pp_rank_\d+_mp_rank_\d+_(?:optim|model)_states\.pt")
# How metadata begin that stand for a list of tensors, which is not read; its length follows.
LIST_OF_TENSORS = "list of tensors: "
# What accelerate (save_state) and transformers save beside the weights.
STATE_FILE = re.compile(
    r"(?:optimizer|(?:lr_)?scheduler|sampler|(?:grad_)?scaler|random_states?|rng_states?|dl_state_dict|training_args"
    r"|custom_checkpoint)(?:_\d+)*\.(?:bin|pt|pth|pkl)"
)


class InPiecesError(CheckpointError):
    """A trainer's checkpoint is in pieces; the message has the command that puts them together."""


def refuse_trainer_folder(folder: Path, names: Collection[str]) -> None:
    """Refuse the folder of a distributed checkpoint (torch, DeepSpeed); ``names`` are its files and folders.

    Not where whole weights lie beside the pieces, which trainers write as safetensors or ``.bin``. Raises
    InPiecesError.
    """
    if any(name.endswith((".safetensors", ".bin")) for name in names):
        return
    if any(name.endswith(DCP_ENDING) for name in names):
        raise InPiecesError(
            f"{folder} is a distributed checkpoint of torch (DCP); put it together with 'python -m "
            f"torch.distributed.checkpoint.format_utils dcp_to_torch {folder} OUT.pt' and give OUT.pt"
        )
    _refuse_zero(folder, names)


def _refuse_zero(folder: Path, names: Collection[str]) -> None:
    script = next((place for place in (folder, folder.parent) if (place / "zero_to_fp32.py").is_file()), None)
    pieces = any(_ZERO.fullmatch(name) for name in names)
    if pieces or (script == folder and any(name.startswith("global_step") for name in names)):
        root = script or folder.parent
        raise InPiecesError(
            f"{folder} is a checkpoint of DeepSpeed ZeRO, in pieces; put it together with 'python "
            f"{root / 'zero_to_fp32.py'} {root} OUT' and give OUT"
        )
