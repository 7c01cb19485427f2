"""Language models: one interface to those on this machine and to endpoints of OpenAI's protocol or DashScope's."""

from typing import TYPE_CHECKING

from wan_core.lazy import on_demand

if TYPE_CHECKING:
    from wan_core.llm.chat import Chat, Message
    from wan_core.llm.embedding import LocalEmbedder
    from wan_core.llm.endpoint import open_dashscope, open_endpoint
    from wan_core.llm.local import LocalChat, sees_pictures
    from wan_core.llm.qwen import PICTURE_TOKEN, chat_markup, picture_patches
else:
    __getattr__, __dir__ = on_demand(__name__)

__all__ = [
    "PICTURE_TOKEN",
    "Chat",
    "LocalChat",
    "LocalEmbedder",
    "Message",
    "chat_markup",
    "open_dashscope",
    "open_endpoint",
    "picture_patches",
    "sees_pictures",
]
