"""``sfu download``: everything that runs and trains here, each repository into a folder of its own, checked."""

from wan_core.cli import Download, downloads_command

_UNIANIMATE = "ZheWang123/UniAnimate-DiT"
DOWNLOADS = {
    "base": Download(
        title="Wan2.1 1.3B, which is trained further", model="t2v-1.3B", folder="Wan2.1-T2V-1.3B", size="about 17 GB"
    ),
    "student": Download(
        title="Self-Forcing, after distillation and after its first stage",
        model="gdhe17/Self-Forcing",
        # The repository keeps them in a folder of this name; in a folder of that name they would lie two deep.
        folder="Self-Forcing",
        files=("checkpoints/self_forcing_dmd.pt", "checkpoints/ode_init.pt"),
    ),
    "clip": Download(
        title="the CLIP image encoder, beside the 1.3B network",
        model="Wan-AI/Wan2.1-I2V-14B-480P",
        folder="Wan2.1-T2V-1.3B",
        files=("models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth",),
    ),
    "teacher": Download(
        title="Wan2.1 I2V 14B, the teacher's base", model="i2v-14B-720P", folder="Wan2.1-I2V-14B-720P",
        size="about 82 GB",
    ),
    "unianimate": Download(
        title="UniAnimate's LoRA and pose encoder",
        model=_UNIANIMATE,
        folder="UniAnimate-DiT",
        files=("UniAnimate-Wan2.1-14B-Lora-12000.ckpt",),
    ),
    "detectors": Download(
        title="the two detectors of poses", model=_UNIANIMATE, folder="detectors",
        files=("dw-ll_ucoco_384.onnx", "yolox_l.onnx"),
    ),
}  # fmt: skip

download = downloads_command(
    DOWNLOADS,
    "Fetch the weights of the student, the teacher and the detectors, only the files that are needed, checked. Files "
    "that are there and right are not fetched again.",
)
