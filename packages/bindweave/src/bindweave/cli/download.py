"""``bindweave download``: all weights that the chain of commands reads, each repository into a folder of its own."""

from wan_core.cli import Download, downloads_command

DOWNLOADS = {
    "bindweave": Download(
        title="BindWeave's transformer, a finetuned Wan2.1 I2V 14B",
        model="ByteDance/BindWeave",
        folder="BindWeave_14B",
        files=("*.safetensors", "*.json"),
        size="16.4 billion parameters",
    ),
    "base": Download(
        title="the VAE, UMT5 and CLIP of Wan2.1 I2V 14B",
        model="Wan-AI/Wan2.1-I2V-14B-720P-Diffusers",
        folder="Wan2.1-I2V-14B-720P-Diffusers",
        files=("vae/*", "text_encoder/*", "tokenizer/*", "image_encoder/*", "image_processor/*", "model_index.json"),
    ),
    "mllm": Download(
        title="Qwen2.5-VL 7B, whose hidden states the transformer reads",
        model="Qwen/Qwen2.5-VL-7B-Instruct",
        folder="Qwen2.5-VL-7B-Instruct",
        files=("*.safetensors", "*.json", "merges.txt"),
        size="about 17 GB",
    ),
}

download = downloads_command(
    DOWNLOADS,
    "Fetch the weights of BindWeave, of the parts of Wan2.1 that it works with, and of Qwen2.5-VL, only the files that "
    "are needed, checked. Files that are there and right are not fetched again.",
)
