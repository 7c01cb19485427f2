"""The lock without addresses: stripping and comparing, on text; no network and no uv."""

import pytest

from tools.lock import LockError, compare, strip_addresses

FILLED = """version = 1
revision = 5

[[package]]
name = "av"
version = "19.0.2"
source = { registry = "https://index.example/simple" }
dependencies = [
    { name = "numpy", version = "2.5.5", source = { registry = "https://index.example/simple" }, marker = "x < '3'" },
]
sdist = { url = "https://index.example/p/0b/av-19.0.2.tar.gz", hash = "sha256:aa", size = 17, upload-time = "2026" }
wheels = [
    { url = "https://index.example/p/5e/av-19.0.2%2Bcpu-py3-none-any.whl", hash = "sha256:bb", size = 9 },
]

[[package]]
name = "wan-core"
version = "0.1.0"
source = { editable = "packages/wan-core" }

[package.metadata]
requires-dist = [{ name = "av", specifier = ">=13" }]
"""
STRIPPED = """version = 1
revision = 5

[[package]]
name = "av"
version = "19.0.2"
source = { registry = "index" }
dependencies = [
    { name = "numpy", version = "2.5.5", source = { registry = "index" }, marker = "x < '3'" },
]
sdist = { path = "av-19.0.2.tar.gz", hash = "sha256:aa" }
wheels = [
    { path = "av-19.0.2+cpu-py3-none-any.whl", hash = "sha256:bb" },
]

[[package]]
name = "wan-core"
version = "0.1.0"
source = { editable = "packages/wan-core" }

[package.metadata]
requires-dist = [{ name = "av", specifier = ">=13" }]
"""


def test_addresses_sizes_and_times_are_stripped() -> None:
    assert strip_addresses(FILLED) == STRIPPED


def test_stripping_twice_changes_nothing() -> None:
    assert strip_addresses(STRIPPED) == STRIPPED


def test_an_address_that_cannot_be_stripped_is_an_error() -> None:
    with pytest.raises(LockError, match="line 1 keeps an address"):
        strip_addresses('source = { git = "https://host.example/project" }\n')


def test_a_lock_agrees_with_its_filled_in_form() -> None:
    compare(STRIPPED, FILLED)


def test_a_wheel_added_to_the_index_later_is_no_difference() -> None:
    newer = FILLED.replace(
        "wheels = [", 'wheels = [\n    { url = "https://a.example/av-19.0.2-new.whl", hash = "sha256:cc" },'
    )
    compare(STRIPPED, newer)


@pytest.mark.parametrize(
    ("committed", "filled", "message"),
    [
        (FILLED, FILLED, "has an address in line 7"),
        (STRIPPED, FILLED.replace("19.0.2", "19.0.3"), "does not cover the pyproject files .av."),
        (STRIPPED, FILLED.replace(">=13", ">=14"), "does not cover the pyproject files .wan-core."),
        (STRIPPED, FILLED.replace("sha256:bb", "sha256:bc"), "other hashes .* av-19.0.2.cpu-py3-none-any.whl"),
        (STRIPPED, FILLED.replace("sha256:aa", "sha256:ab"), "other hashes .* av-19.0.2.tar.gz"),
    ],
)
def test_a_difference_is_named_in_one_line(committed: str, filled: str, message: str) -> None:
    with pytest.raises(LockError, match=message) as caught:
        compare(committed, filled)
    assert "\n" not in str(caught.value)
