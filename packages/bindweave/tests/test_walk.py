"""The walk through the original's documentation on tiny weights in its layouts, and the same in one command."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from click.testing import Result
from PIL import Image

from bindweave.cli.convert import convert
from bindweave.cli.extract import extract
from bindweave.cli.infer import infer
from bindweave.cli.refine import refine
from bindweave.cli.run import run_command
from tests.chat_server import Reply, chat_server, said
from tests.tiny_qwen import write_tiny_vision_model
from wan_core.cli import wan

Run = Callable[..., Result]
WAN = "pretrained_model/wanx/Wan2.1-I2V-14B-720P-Diffusers"
RELEASE = "BindWeave_14B"
PICTURES = "s2v/OpenS2V-Eval/Images"
META = "s2v/OpenS2V-Eval/samples.json"


def lay_out(run: Run, files: Path) -> None:
    """Weights, pictures, samples and config where the original's documentation has them."""
    done = run(wan, "convert", files / "wan", WAN, "--to", "diffusers", "--quiet")
    assert done.exit_code == 0, done.output
    shutil.copytree(files / "release", RELEASE)
    write_tiny_vision_model(Path("Qwen2.5-VL-7B-Instruct"), hidden_size=48, num_attention_heads=6)
    Path(PICTURES).mkdir(parents=True)
    for name, colour in (("human.jpg", (200, 150, 120)), ("dog.jpg", (120, 80, 40)), ("school.jpg", (90, 90, 160))):
        Image.new("RGB", (80, 60), colour).save(f"{PICTURES}/{name}")
    sample = {
        "img_paths": ["human.jpg", "dog.jpg", "school.jpg"], "prompt": "A man walks his dog past the school.",
        "class_label": ["man", "dog", "school"], "synthesis_flag": "True",
    }  # fmt: skip
    Path(META).write_text(json.dumps({"faceobj_14": sample}, indent=4))
    config = {
        "META_PATH": "with_features.json", "BASE_IMG_DIR": PICTURES, "OUT_DIR": "results/s2v",
        "save_path": "results/grid", "device": "npu", "dtype": "fp32", "fps": 16, "frame_interval": 1,
        "pipeline_config": {"input_size": [5, 48, 32], "cpu_offload": True},
        "ae": {"model_id": "wanvae", "from_pretrained": f"{WAN}/vae", "dtype": "bf16", "norm_latents": True},
        "text_encoder": {"hub_backend": "hf", "model_id": "UMT5", "from_pretrained": f"{WAN}/text_encoder"},
        "tokenizer": {"hub_backend": "hf", "from_pretrained": f"{WAN}/tokenizer"},
        "image_encoder": {"model_id": "CLIP", "from_pretrained": f"{WAN}/image_encoder"},
        "predictor": {"model_id": "wandit", "from_pretrained": f"{RELEASE}/mm"},
        "diffusion": {"model_id": "wan_flow_unipc", "num_inference_steps": 2, "guidance_scale": 5.0, "flow_shift": 3.0},
        "prompt": "", "image": "", "use_prompt_preprocess": False,
    }  # fmt: skip
    Path("inference_model_s2v.json").write_text(json.dumps(config))


def test_the_steps_of_the_documentation_and_one_command_give_the_same_video(run: Run, files: Path) -> None:
    lay_out(run, files)
    answer = Reply(said("A tall man in a blue coat walks his brown dog past a brick school at dusk."))
    with chat_server(answer) as server:
        asked = ["--model", "m", "--base-url", server.url]
        steps = (
            (refine, META, "-o", "refined.json", "--base-img-dir", PICTURES, *asked),
            (extract, "refined.json", "-o", "with_features.json", "--base-img-dir", PICTURES, "--mllm",
             "Qwen2.5-VL-7B-Instruct", "--device", "cpu"),
            (convert, "--source_path", f"./{RELEASE}/", "--target_path", f"./{RELEASE}/", "--mode", "convert_to_mm"),
            (infer, "--config", "inference_model_s2v.json", "--ckpt-dir", WAN, "--seed", "7", "--device", "cpu"),
        )  # fmt: skip
        for command, *words in steps:
            done = run(command, *words)
            assert done.exit_code == 0, done.output
        assert [path.name for path in Path("results/s2v").glob("*.mp4")] == ["faceobj_14.mp4"]
        again = run(
            run_command, "--config", "inference_model_s2v.json", "--samples", META, "--output-dir", "other",
            "--ckpt-dir", WAN, "--mllm", "Qwen2.5-VL-7B-Instruct", "--seed", "7", "--device", "cpu", *asked,
        )  # fmt: skip
    assert again.exit_code == 0, again.output
    assert Path("other/faceobj_14.mp4").read_bytes() == Path("results/s2v/faceobj_14.mp4").read_bytes()
    assert Path("other/manifest.json").read_bytes() == Path("results/s2v/manifest.json").read_bytes()
