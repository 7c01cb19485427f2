"""What a run of distillation is asked for, as plain values; defaults are those of Self-Forcing's trainer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from wan_core import ConfigError

STEPS = (1000, 750, 500, 250)
SHIFT = 5.0
"""Self-Forcing's student: its times before the shift, and the shift."""
STAGES = ("ode", "teacher-forcing", "dmd", "sid", "gan")
ADVERSARIAL = ("dmd", "sid", "gan")
"""The stages with a second network in training."""
SCORED = ("dmd", "sid")
"""Those with a teacher whose scores are asked for."""
SCORE_TIMES = ("any", "from-exit", "within-exit")
EMA_START = 200
BETAS = (0.0, 0.999)
_SHARES = ("pose_dropout",)
_COUNTS = {"critic_steps": 1, "ema_start": 0, "history_noise": 0}
_AMOUNTS = (
    "guidance_scale", "fake_guidance_scale", "context_noise", "sid_alpha", "generator_weight", "critic_weight",
    "r1_weight", "r2_weight",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class DistillSettings:
    """How the student is distilled.

    ``denoising_steps`` are times before the shift, 1000 to 1, shown to the network under ``flow_shift`` if ``warp``.
    The generator is changed at every ``critic_steps``-th step, the critic at each. ``score_times``: at which timesteps
    scores are asked for; those above where a rollout ended (``from-exit``), and also below where it came from
    (``within-exit``). ``history_noise``: teacher forcing shows clean frames with noise up to so many entries of the
    table; ``clean_history`` False is diffusion forcing. ``guidance_scale`` counts from 0, see ``guided``. Raises
    ConfigError for values that cannot work.
    """

    stage: str
    denoising_steps: tuple[int, ...] = STEPS
    warp: bool = True
    flow_shift: float = SHIFT
    critic_lr: float | None = None
    critic_steps: int = 5
    ema_start: int = EMA_START
    guidance_scale: float = 3.0
    fake_guidance_scale: float = 0.0
    pose_dropout: float = 0.05
    pose_in_negative: bool = False
    context_noise: float = 0.0
    same_step: bool = True
    last_step_only: bool = False
    score_times: str = "any"
    sid_alpha: float = 1.0
    clean_history: bool = True
    history_noise: int = 0
    generator_weight: float = 1e-2
    critic_weight: float = 1e-2
    relativistic: bool = False
    r1_weight: float = 0.0
    r2_weight: float = 0.0
    r_sigma: float = 1e-2

    def __post_init__(self) -> None:
        _one_of("stage", self.stage, STAGES)
        _one_of("score-times", self.score_times, SCORE_TIMES)
        for name, value in asdict(self).items():
            if isinstance(value, float) and not math.isfinite(value):
                raise ConfigError(f"{_shown(name)} must be a finite number, got {value}")
        for name, least in _COUNTS.items():
            if getattr(self, name) < least:
                raise ConfigError(f"{_shown(name)} must be at least {least}, got {getattr(self, name)}")
        for name in _AMOUNTS:
            if getattr(self, name) < 0:
                raise ConfigError(f"{_shown(name)} must not be negative, got {getattr(self, name):g}")
        for name in _SHARES:
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{_shown(name)} must be in 0..1, got {getattr(self, name):g}")
        self._check_limits()
        check_steps(self.denoising_steps)

    def _check_limits(self) -> None:
        if self.flow_shift <= 0 or self.r_sigma <= 0:
            raise ConfigError(f"shift and r-sigma must be above 0, got {self.flow_shift:g} and {self.r_sigma:g}")
        if self.critic_lr is not None and not 0 < self.critic_lr < 100:
            raise ConfigError(f"critic-lr must be above 0 and below 100, got {self.critic_lr:g}; 4e-7 is usual")
        if self.history_noise > 1000 or self.context_noise > 1000:
            raise ConfigError(
                f"history-noise and context-noise are at most 1000, got {self.history_noise} and {self.context_noise:g}"
            )

    @property
    def is_adversarial(self) -> bool:
        """Whether a critic is trained beside the student."""
        return self.stage in ADVERSARIAL

    def critic_rate(self) -> float:
        """The learning rate of the critic: where it is left open 4e-7, and 2e-6 for SiD."""
        if self.critic_lr is not None:
            return self.critic_lr
        return 2e-6 if self.stage == "sid" else 4e-7

    def timesteps(self) -> list[float]:
        """The timesteps of the student's steps as its network sees them."""
        from wan_core.sampling import FlowTable

        if not self.warp:
            return [float(step) for step in self.denoising_steps]
        return FlowTable(self.flow_shift).warped(self.denoising_steps)

    def recipe(self) -> Mapping[str, Any]:
        """All values, plain, with the critic's rate filled in."""
        return {**asdict(self), "critic_lr": self.critic_rate(), "betas": list(BETAS)}


def parse_steps(text: str) -> tuple[int, ...]:
    """Read ``1000,750,500,250``. Raises ConfigError."""
    try:
        steps = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"the student's steps are whole numbers with commas between them, got {text!r}") from None
    check_steps(steps)
    return steps


def check_steps(steps: Sequence[int]) -> None:
    """Raise ConfigError for times before the shift that do not fall from at most 1000 to above 0."""
    falls = all(one > other for one, other in zip((1001, *steps), (*steps, 0), strict=True))
    if not steps or not falls:
        raise ConfigError(f"the student's steps must decrease from at most 1000 to above 0, got {list(steps)}")


def _one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ConfigError(f"{name} must be one of {', '.join(known)}, got {value!r}")


def _shown(name: str) -> str:
    return name.replace("_", "-")
