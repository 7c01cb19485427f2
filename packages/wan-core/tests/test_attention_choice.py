"""Attention kernels chosen by name: what works is used, what does not is named with its remedy."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor

from wan_core.cli import wan
from wan_core.errors import BackendError, ConfigError
from wan_core.models import InnerAttention
from wan_core.runtime import attention_backends as backends
from wan_core.runtime import attention_choice as choice
from wan_core.runtime import choose_attention_backend
from wan_core.runtime.attention_parts import plain_part

from .flash_packages import flash_package

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
FLASH3 = "flash_attn_interface"


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    choice.backend_problem.cache_clear()
    yield
    choice.backend_problem.cache_clear()


@pytest.fixture(autouse=True)
def hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU of capability 9 that the tests compute for, on which cuDNN does not work."""
    of_generation(monkeypatch, 9)
    drawn = choice._drawn(CPU)
    monkeypatch.setattr(choice, "_drawn", lambda device: drawn)
    monkeypatch.setattr(backends, "_is_for_flash", lambda query: True)


def of_generation(monkeypatch: pytest.MonkeyPatch, major: int) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (major, 0))


def exact(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return InnerAttention()(query, key, value)


def package(monkeypatch: pytest.MonkeyPatch, folder: Path, files: dict[str, str]) -> None:
    """Files of packages that are installed in ``folder``."""
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    monkeypatch.syspath_prepend(str(folder))
    for module in [name for name in sys.modules if name.split(".")[0] == "flash_attn"]:
        monkeypatch.delitem(sys.modules, module)


@pytest.fixture
def imported() -> Iterator[None]:
    """Forgets the packages that a test imports."""
    yield
    for module in [name for name in sys.modules if name.split(".")[0] == "flash_attn"]:
        del sys.modules[module]


def test_auto_on_the_cpu_is_the_kernel_of_torch_and_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    flash_package(monkeypatch, FLASH3, exact)
    assert choose_attention_backend("auto", CPU) == choice.AttentionChoice("sdpa")


def test_auto_takes_what_works_on_the_gpu_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    flash_package(monkeypatch, FLASH3, exact)
    flash_package(monkeypatch, "flash_attn", exact)
    assert choose_attention_backend("auto", GPU).name == "flash3"
    of_generation(monkeypatch, 8)
    choice.backend_problem.cache_clear()
    assert choose_attention_backend("auto", GPU) == choice.AttentionChoice("flash2", "note: attention by flash2")


def test_auto_on_an_unknown_gpu_is_the_kernel_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    flash_package(monkeypatch, FLASH3, exact)
    of_generation(monkeypatch, 7)
    assert choose_attention_backend("auto", GPU) == choice.AttentionChoice("sdpa", "note: attention by sdpa")


def test_auto_passes_by_the_empty_name_that_flash_attn_4_leaves(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, imported: None
) -> None:
    kernel = (
        "from wan_core.models import InnerAttention\n\ndef flash_attn_func(*given): return InnerAttention()(*given)\n"
    )
    package(monkeypatch, tmp_path, {"flash_attn/cute/__init__.py": kernel})
    of_generation(monkeypatch, 8)
    assert choose_attention_backend("auto", GPU) == choice.AttentionChoice("sdpa", "note: attention by sdpa")
    with pytest.raises(BackendError, match="attention flash2 is not installed: install flash-attn, of"):
        choose_attention_backend("flash2", GPU)
    of_generation(monkeypatch, 10)
    choice.backend_problem.cache_clear()
    assert choose_attention_backend("flash4", GPU).name == "flash4"


BROKEN: dict[str, tuple[str, str]] = {
    "a build for another torch": ("raise ImportError('undefined symbol: _ZN3c10')", "undefined symbol: _ZN3c10"),
    "a missing dependency": ("import a_kernel_compiler_that_is_not_here", "No module named 'a_kernel_compiler"),
    "a library that cannot be opened": ("raise OSError('libcudart.so.11.0: cannot open')", "libcudart.so.11.0"),
    "another interface": ("", "has no attribute 'flash_attn_func'"),
    "another gpu": (
        "def flash_attn_func(*given): raise RuntimeError('no kernel image is available\\nCompile with')",
        "no kernel image is available; use --attention sdpa",
    ),
    "another signature": ("def flash_attn_func(one): return one", "takes 1 positional argument"),
    "wrong numbers": ("def flash_attn_func(query, key, value): return query * 0 + 9", "computes something else, by 9"),
    "no numbers": ("def flash_attn_func(query, key, value): return query / 0", "computes something else, by 3.4e+38"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_cannot_be_used_is_passed_by_with_its_reason_and_refused_by_name(
    case: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, imported: None
) -> None:
    text, reason = BROKEN[case]
    package(monkeypatch, tmp_path, {"flash_attn/__init__.py": text})
    of_generation(monkeypatch, 8)
    found = choose_attention_backend("auto", GPU)
    assert found.name == "sdpa"
    assert found.note.startswith("note: attention by sdpa; flash2 is there but ")
    assert reason.split(";")[0] in found.note
    assert "\n" not in found.note
    with pytest.raises(BackendError) as refused:
        choose_attention_backend("flash2", GPU)
    assert str(refused.value).startswith("attention flash2 is there but ")
    assert reason in str(refused.value)
    assert str(refused.value).endswith("; use --attention sdpa")


def test_a_kernel_whose_sums_are_wrong_is_not_for_use(monkeypatch: pytest.MonkeyPatch) -> None:
    def of_base_two(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        mixed, sums = plain_part(*(each.transpose(1, 2) for each in (query, key, value)))
        return mixed.transpose(1, 2), sums * 1.4427

    flash_package(monkeypatch, FLASH3, of_base_two)
    assert "flash3 is there but computes something else" in choose_attention_backend("auto", GPU).note


def test_a_kernel_is_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    called = []

    def noted(*given: Tensor) -> Tensor:
        called.append(given)
        return exact(*given)

    flash_package(monkeypatch, FLASH3, noted)
    for name in ("auto", "flash3", "auto"):
        choose_attention_backend(name, GPU)
    assert len(called) == 2  # the whole and as a part


@pytest.mark.parametrize("name", ["flash2", "flash3", "flash4"])
def test_a_missing_package_is_named(name: str) -> None:
    with pytest.raises(BackendError, match=rf"attention {name} is not installed: .*flash-attn.*; use --attention sdpa"):
        choose_attention_backend(name, GPU)


@pytest.mark.parametrize("name", ["cudnn", "flash2", "flash3", "flash4"])
def test_a_device_without_the_kernel_is_named(name: str) -> None:
    with pytest.raises(BackendError, match=f"attention {name} does not run on cpu, it is for GPUs of compute capab"):
        choose_attention_backend(name, CPU)


def test_cudnn_is_used_where_torch_can_use_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BackendError, match=r"attention cudnn is there but cannot be used: .*; use --attention sdpa"):
        choose_attention_backend("cudnn", GPU)  # the tensors of the tests are on the CPU
    works: Callable[..., Any] = lambda attention, device: 0.0  # noqa: E731
    monkeypatch.setattr(choice, "_difference", works)
    choice.backend_problem.cache_clear()
    assert choose_attention_backend("cudnn", GPU).note == "note: attention by cudnn, as asked for"
    assert choose_attention_backend("auto", GPU).name == "cudnn"  # no flash-attn 3


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="auto, sdpa, cudnn, flash4, flash3, flash2, got 'xformers'"):
        choose_attention_backend("xformers", CPU)


def test_every_order_names_kernels_for_the_gpu() -> None:
    for major, names in choice.AUTO_ORDER.items():
        assert all(major in backends.GPU_BACKENDS[name].capabilities for name in names)


def test_a_command_refuses_a_kernel_without_looking_for_weights() -> None:
    words = ["t2v-A14B", "--prompt", "x", "--device", "cpu", "--attention", "cudnn", "--dry-run"]
    result = CliRunner().invoke(wan, ["generate", *words])
    assert result.exit_code == 5
    assert "attention cudnn does not run on cpu" in result.stderr
