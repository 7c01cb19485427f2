"""What a user asks for: the picture that starts the video and is looked at, and what comes out besides the video."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wan_core import RequestError
from wan_core.files import check_place
from wan_core.tasks import TI2VRequest

SPACES = ("dit", "text")
_YES, _NO = ("yes", "true", "t", "y", "1"), ("no", "false", "f", "n", "0")
_LATENT_ENDINGS = (".pt", ".safetensors")


def parse_switch(text: str) -> bool:
    """Read ``true`` or ``false`` in the seed's spellings. Raises RequestError."""
    word = text.strip().lower()
    if word not in (*_YES, *_NO):
        raise RequestError(f"true or false is wanted, got {text!r}")
    return word in _YES


def parse_space(text: str) -> str:
    """Read the space of guidance tokens. Raises RequestError."""
    if text not in SPACES:
        raise RequestError(f"context space must be dit or text, got {text!r}")
    return text


def _option(*names: str, help: str, **more: Any) -> dict[str, Any]:
    return {"option": names, "help": help, **more}


@dataclass(frozen=True, kw_only=True)
class PozeRequest(TI2VRequest):
    """A prompt and a picture; Pi3's features of the picture guide the video.

    ``adapter`` is a trained adapter, ``adapter_tokens`` how many tokens an untrained one would make (64).
    ``context_space`` says where tokens join: behind the embedded text (``dit``, as the reference's code does) or
    before the text embedding (``text``, as its README says). ``drop_in_negative`` leaves them out of the negative
    branch, so that the guidance scale amplifies them.
    """

    pi3_checkpoint: Path | None = field(
        default=None,
        metadata=_option(
            "--pi3-checkpoint",
            help="Weights of Pi3: .safetensors, .pt, or a folder of them.",
            part="pi3",
            recorded=False,
        ),
    )
    pi3_pretrained_id: str | None = field(
        default=None,
        metadata=_option(
            "--pi3-pretrained-id",
            help="The repository of Pi3 where no file is given.",
            part="pi3",
            recorded=False,
        ),
    )
    adapter: Path | None = field(
        default=None, metadata=_option("--adapter", help="A trained adapter, as poze-finetune writes it.")
    )
    adapter_tokens: int | None = field(
        default=None,
        metadata=_option("--adapter-tokens", help="Guidance tokens of an untrained adapter; default 64."),
    )
    use_pi3: bool | None = field(
        default=None,
        metadata=_option("--use-pi3", help="false: no Pi3, plain TI2V.", parse=parse_switch, metavar="BOOL"),
    )
    context_space: str | None = field(
        default=None,
        metadata=_option(
            "--context-space",
            help="Where tokens join: dit (default) or text.",
            parse=parse_space,
            metavar="NAME",
        ),
    )
    drop_in_negative: bool = field(
        default=False,
        metadata={
            "option": ("--drop-in-negative",),
            "help": "No tokens in the negative branch: the guidance scale then amplifies them.",
        },
    )
    save_latents: Path | None = field(
        default=None,
        metadata=_option("--save-latents", help="Write Pi3's latents: .pt or .safetensors.", output=True),
    )
    save_pi3: Path | None = field(
        default=None,
        metadata=_option(
            "--save-pi3",
            help="Write Pi3's points: a .ply, or a folder with depth and cameras.",
            output=True,
        ),
    )

    @property
    def looks(self) -> bool:
        """Whether Pi3 is used at all."""
        return self.use_pi3 is not False

    def validate(self) -> None:
        super().validate()
        if self.image is None:
            raise RequestError("a picture is needed, for Pi3 to look at and the video to start with: --image FILE")
        if self.adapter_tokens is not None and not 1 <= self.adapter_tokens <= 4096:
            raise RequestError(f"--adapter-tokens must be 1 to 4096, got {self.adapter_tokens}")
        self._check_files()
        self._check_combinations()

    def _check_files(self) -> None:
        if self.adapter is not None and not self.adapter.is_file():
            raise RequestError(f"--adapter: there is no file {self.adapter}")
        if self.pi3_checkpoint is not None and not self.pi3_checkpoint.exists():
            raise RequestError(f"--pi3-checkpoint: there is no file or folder {self.pi3_checkpoint}")
        if self.save_latents is not None and self.save_latents.suffix not in _LATENT_ENDINGS:
            raise RequestError(f"--save-latents must end in .pt or .safetensors, got {self.save_latents}")
        if self.save_pi3 is not None and self.save_pi3.suffix not in ("", ".ply"):
            raise RequestError(f"--save-pi3 is a folder or a .ply file, got {self.save_pi3}")
        for option, path in (("--save-latents", self.save_latents), ("--save-pi3", self.save_pi3)):
            if path is None:
                continue
            if path == self.save_latents or path.suffix == ".ply" or not path.exists() or path.is_dir():
                check_place(path, is_folder=not path.suffix)
            else:
                raise RequestError(f"{option} {path} is a file; name a folder, or a .ply file")

    def _check_combinations(self) -> None:
        if not self.looks:
            needless = [
                option
                for option, value in (
                    ("--adapter", self.adapter),
                    ("--save-latents", self.save_latents),
                    ("--save-pi3", self.save_pi3),
                )
                if value is not None
            ]
            if needless:
                raise RequestError(f"{needless[0]} needs Pi3; leave out --use-pi3 false")
