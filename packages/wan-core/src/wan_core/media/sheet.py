"""Contact sheets: many frames in one image, for documents and for looking at a training run."""

from collections.abc import Iterable

from PIL import Image
from torch import Tensor

from wan_core.media.images import tensor_to_image

MAX_SHEET_PIXELS = 100_000_000


def contact_sheet(
    frames: Iterable[Image.Image | Tensor], columns: int, *, cell_width: int | None = None, gap: int = 4
) -> Image.Image:
    """Frames side by side, row by row, on white.

    ``frames`` are images or tensors [3, H, W] (float in [-1, 1] or uint8), e.g. a clip [T, 3, H, W]; each is scaled
    into a cell as wide as ``cell_width`` (default: the first frame's) with the first frame's aspect ratio. ``gap`` is
    in pixels. Raises ``ValueError`` for no frames, no columns, or a sheet of more than 100 million pixels.
    """
    images = [frame if isinstance(frame, Image.Image) else tensor_to_image(frame) for frame in frames]
    if not images or columns < 1 or gap < 0:
        raise ValueError(f"a sheet needs frames, columns and gap >= 0, got {len(images)}, {columns} and {gap}")
    width = cell_width or images[0].width
    height = max(1, round(width * images[0].height / images[0].width))
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    size = columns * (width + gap) + gap, rows * (height + gap) + gap
    if size[0] * size[1] > MAX_SHEET_PIXELS:
        raise ValueError(f"a sheet of {size[0]}x{size[1]} is too large; use fewer frames or a smaller cell_width")
    sheet = Image.new("RGB", size, "white")
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        scale = min(width / image.width, height / image.height)
        inner = max(1, round(image.width * scale)), max(1, round(image.height * scale))
        cell = image if image.size == inner else image.resize(inner, Image.Resampling.LANCZOS)
        left = gap + column * (width + gap) + (width - inner[0]) // 2
        top = gap + row * (height + gap) + (height - inner[1]) // 2
        sheet.paste(cell.convert("RGB"), (left, top))
    return sheet
