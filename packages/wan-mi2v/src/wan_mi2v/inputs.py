"""What the task read: the images, their names and the latent frames that they fix."""

from dataclasses import dataclass

from wan_core.tasks import TI2VInputs
from wan_mi2v.request import MI2VRequest


@dataclass(frozen=True, kw_only=True)
class MI2VInputs(TI2VInputs[MI2VRequest]):
    """``images`` [N, 3, H, W] and their ``names``; ``positions`` are the latent frames that they fix.

    Where ``joint``, the images are the first N = 4n+1 frames of the video and the positions its n+1 latent frames;
    otherwise there is one position per image.
    """

    names: tuple[str, ...]
    positions: tuple[int, ...]
    joint: bool
