"""Subject-to-video with BindWeave: the subjects of one to four pictures appear in a video of a prompt."""

from typing import TYPE_CHECKING

from wan_core.lazy import on_demand

if TYPE_CHECKING:
    from bindweave.config import BindWeaveConfig
    from bindweave.families import BINDWEAVE
else:
    __getattr__, __dir__ = on_demand(__name__)

__all__ = ["BINDWEAVE", "BindWeaveConfig"]
