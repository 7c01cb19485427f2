"""Images, videos and sound: read, fit, written whole or not at all, with the record of how they were made."""

from typing import TYPE_CHECKING

from wan_core.lazy import on_demand

if TYPE_CHECKING:
    from wan_core.files import plain_text
    from wan_core.media.audio import AudioTrack, lengthened, load_audio, mixed, resample, shifted
    from wan_core.media.geometry import (
        FrameSize,
        LatentSpec,
        VideoGeometry,
        best_output_size,
        centred_within,
        latent_grid_for_area,
        padded_size_within,
        parse_size,
    )
    from wan_core.media.images import (
        fit_cover,
        fit_frame,
        fit_padded,
        fit_short_side,
        image_to_tensor,
        load_cutout,
        load_image,
        resize_by_rows,
        stretch_bicubic,
        tensor_to_image,
        to_uint8,
    )
    from wan_core.media.output import check_output, check_own_files, holds_sound, is_pattern
    from wan_core.media.provenance import Provenance, read_provenance
    from wan_core.media.sheet import contact_sheet
    from wan_core.media.streams import check_stream, is_pipe, write_stream
    from wan_core.media.video import write_image, write_video
    from wan_core.media.video_access import VideoFrames
    from wan_core.media.video_reader import count_frames, frame_times, probe_video, read_video, stream_video
else:
    __getattr__, __dir__ = on_demand(__name__)

__all__ = [
    "AudioTrack",
    "FrameSize",
    "LatentSpec",
    "Provenance",
    "VideoFrames",
    "VideoGeometry",
    "best_output_size",
    "centred_within",
    "check_output",
    "check_own_files",
    "check_stream",
    "contact_sheet",
    "count_frames",
    "fit_cover",
    "fit_frame",
    "fit_padded",
    "fit_short_side",
    "frame_times",
    "holds_sound",
    "image_to_tensor",
    "is_pattern",
    "is_pipe",
    "latent_grid_for_area",
    "lengthened",
    "load_audio",
    "load_cutout",
    "load_image",
    "mixed",
    "padded_size_within",
    "parse_size",
    "plain_text",
    "probe_video",
    "read_provenance",
    "read_video",
    "resample",
    "resize_by_rows",
    "shifted",
    "stream_video",
    "stretch_bicubic",
    "tensor_to_image",
    "to_uint8",
    "write_image",
    "write_stream",
    "write_video",
]
