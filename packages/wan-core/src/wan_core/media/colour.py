"""What a video says about its colours, and how they become those of an ordinary screen (SDR, BT.709).

Code points and curves are those of ITU-T H.273 (FFmpeg uses its numbers). HDR is mapped by the EETF of Report ITU-R
BT.2408, annex 5 (until 2021 in BT.2390, 5.4.1), from the peak of the material to its reference white of 203 cd/m2, on
the largest of R, G and B, so that hues stay; the display is that of BT.1886.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Curve = Callable[[NDArray[np.float64]], NDArray[np.float64]]

UNSAID = (0, 2, 3)  # "unspecified" and what H.273 keeps reserved
REFERENCE_WHITE = 203.0  # cd/m2: BT.2408, 2.1
DEFAULT_PEAK = 1000.0  # cd/m2: of HLG (BT.2100, nominal) and of PQ whose mastering display is not described
_PQ_MAX = 10_000.0
_LEVELS = 65536
_PIXELS_AT_ONCE = 1 << 16  # 64 Ki pixels of float32 RGB stay in the cache

# -- primaries: names, and chromaticities of red, green, blue and white


@dataclass(frozen=True)
class Primaries:
    """A colour gamut: CIE 1931 x, y of its red, green and blue lights and of white."""

    name: str
    lights: tuple[tuple[float, float], ...]
    white: tuple[float, float]

    def to_xyz(self) -> NDArray[np.float64]:
        """The matrix [3, 3] from linear RGB to CIE XYZ, white at Y = 1; the middle row are the luminances."""
        columns = np.array([_xyz(each) for each in self.lights]).T
        return columns * np.linalg.solve(columns, _xyz(self.white))


def _xyz(chromaticity: tuple[float, float]) -> NDArray[np.float64]:
    x, y = chromaticity
    return np.array([x / y, 1.0, (1 - x - y) / y])


_D65, _C = (0.3127, 0.3290), (0.310, 0.316)
_SMPTE_C = ((0.630, 0.340), (0.310, 0.595), (0.155, 0.070))
_P3 = ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060))
BT709 = Primaries("BT.709", ((0.640, 0.330), (0.300, 0.600), (0.150, 0.060)), _D65)
PRIMARIES = {
    1: BT709,
    4: Primaries("BT.470 M", ((0.67, 0.33), (0.21, 0.71), (0.14, 0.08)), _C),
    5: Primaries("BT.601 625 lines", ((0.64, 0.33), (0.29, 0.60), (0.15, 0.06)), _D65),
    6: Primaries("BT.601 525 lines", _SMPTE_C, _D65),
    7: Primaries("SMPTE 240M", _SMPTE_C, _D65),
    8: Primaries("generic film", ((0.681, 0.319), (0.243, 0.692), (0.145, 0.049)), _C),
    9: Primaries("BT.2020", ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046)), _D65),
    11: Primaries("DCI P3", _P3, (0.314, 0.351)),
    12: Primaries("Display P3", _P3, _D65),
    22: Primaries("EBU 3213", ((0.630, 0.340), (0.295, 0.605), (0.155, 0.077)), _D65),
}  # fmt: skip

# -- transfer characteristics: code values in [0, 1] to light, 1 being white, and back


def _camera(alpha: float, beta: float) -> tuple[Curve, Curve]:
    """The curve of BT.601, 709 and 2020 cameras (alpha 1.099, beta 0.018) or of SMPTE 240M."""
    slope = (alpha * beta**0.45 - alpha + 1) / beta
    return (
        lambda code: np.where(code < slope * beta, code / slope, ((code + alpha - 1) / alpha) ** (1 / 0.45)),
        lambda light: np.where(light < beta, light * slope, alpha * light**0.45 - alpha + 1),
    )


def _srgb_light(code: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(code <= 0.04045, code / 12.92, ((code + 0.055) / 1.055) ** 2.4)


def _srgb_code(light: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)


_M1, _M2 = 2610 / 16384, 2523 / 4096 * 128
_C1, _C2, _C3 = 3424 / 4096, 2413 / 4096 * 32, 2392 / 4096 * 32
_A, _B, _C0 = 0.17883277, 0.28466892, 0.55991073


def pq_light(code: NDArray[np.float64]) -> NDArray[np.float64]:
    """PQ (SMPTE ST 2084, BT.2100 table 4): code values in [0, 1] to display light, 1 being 10 000 cd/m2."""
    power = code ** (1 / _M2)
    return (np.maximum(power - _C1, 0) / (_C2 - _C3 * power)) ** (1 / _M1)


def pq_code(light: NDArray[np.float64]) -> NDArray[np.float64]:
    """The inverse of :func:`pq_light`."""
    power = light**_M1
    return ((_C1 + _C2 * power) / (1 + _C3 * power)) ** _M2


def hlg_light(code: NDArray[np.float64]) -> NDArray[np.float64]:
    """HLG (ARIB STD-B67, BT.2100 table 5): code values in [0, 1] to scene light in [0, 1]."""
    return np.where(code <= 0.5, code * code / 3, (np.exp((code - _C0) / _A) + _B) / 12)


@dataclass(frozen=True)
class Transfer:
    """A transfer characteristic: its name, its code values to light, and light to the code values of the screen."""

    name: str
    to_light: Curve
    to_code: Curve


_TO_CAMERA_LIGHT, _TO_CAMERA_CODE = _camera(1.09929682680944, 0.018053968510807)
_CAMERA = Transfer("BT.709", _TO_CAMERA_LIGHT, _TO_CAMERA_CODE)
_SRGB = Transfer("sRGB", _srgb_light, _srgb_code)
_PQ, _HLG, _BT2020 = 16, 18, 9
_OF_BT2020 = (14, 15, _PQ, _HLG)


def _bt1886(light: NDArray[np.float64]) -> NDArray[np.float64]:
    return light ** (1 / 2.4)


def power(gamma: float) -> Transfer:
    """Light is a power of the code value."""
    return Transfer(f"gamma {gamma:g}", lambda code: code**gamma, _srgb_code)


def _log(name: str, decades: float) -> Transfer:
    return Transfer(name, lambda code: np.where(code > 0, 10 ** ((code - 1) * decades), 0), _srgb_code)


TRANSFERS = {
    **dict.fromkeys((1, 6, 11, 12, 14, 15), _CAMERA),
    4: power(2.2),
    5: power(2.8),
    7: replace(_CAMERA, name="SMPTE 240M", to_light=_camera(1.1115, 0.0228)[0]),
    8: replace(power(1.0), name="linear light"),
    9: _log("logarithmic, 100:1", 2.0),
    10: _log("logarithmic, 316:1", 2.5),
    13: _SRGB,
    _PQ: Transfer("PQ", pq_light, _bt1886),
    17: Transfer("SMPTE ST 428", lambda code: np.minimum(code**2.6 * (52.37 / 48), 1), _srgb_code),
    _HLG: Transfer("HLG", hlg_light, _bt1886),
}

# -- matrices between RGB and brightness with colour differences

_MATRICES = {1: 1, 4: 4, 5: 5, 6: 5, 7: 7, 9: 9}  # FFmpeg's number: swscale's
_OTHER_MATRICES = {
    8: "YCgCo", 10: "BT.2020 with constant luminance", 11: "SMPTE ST 2085", 13: "constant luminance", 14: "ICtCp",
    15: "IPT-PQ-C2 (Dolby Vision)", 16: "YCgCo-Re", 17: "YCgCo-Ro",
}  # fmt: skip
_DERIVED = 12  # from the primaries: those of BT.709, 601 and 2020 have a matrix of their own
_DERIVED_FROM = {1: 1, 2: 1, 6: 5, 7: 7, 9: 9}


@dataclass(frozen=True)
class Description:
    """The numbers by which a frame says its colours, as FFmpeg names them; ``is_rgb``: it needs no matrix."""

    matrix: int
    primaries: int
    transfer: int
    is_rgb: bool
    width: int
    height: int

    @property
    def lacks_matrix(self) -> bool:
        """Whether the matrix has to be guessed."""
        return not self.is_rgb and self.matrix in UNSAID

    @property
    def gamut(self) -> int:
        """The primaries. Those that are not said are of BT.2020 where the matrix or the transfer characteristic is."""
        if self.primaries in UNSAID and (self.matrix == _BT2020 or self.transfer in _OF_BT2020):
            return _BT2020
        return self.primaries

    @property
    def is_hdr(self) -> bool:
        """Whether its transfer characteristic is PQ or HLG."""
        return self.transfer in (_PQ, _HLG)

    def refusal(self) -> str | None:
        """Why these colours cannot be read, or ``None``."""
        if not self.is_rgb and self.matrix in _OTHER_MATRICES:
            return f"stores its colours as {_OTHER_MATRICES[self.matrix]}"
        if not self.is_rgb and self.matrix not in {*_MATRICES, *UNSAID} and self.swscale_matrix is None:
            return f"stores its colours by matrix number {self.matrix} of ITU-T H.273"
        if self.primaries not in {*PRIMARIES, *UNSAID}:
            name = "CIE XYZ (SMPTE ST 428)" if self.primaries == 10 else f"number {self.primaries} of ITU-T H.273"
            return f"has the colour primaries {name}"
        if self.transfer not in {*TRANSFERS, *UNSAID}:
            return f"has the transfer characteristic number {self.transfer} of ITU-T H.273"
        return None

    @property
    def swscale_matrix(self) -> int | None:
        """The matrix as swscale numbers it, ``None`` for RGB. One that is not said is BT.709 in HD, else BT.601.

        HD begins where mpv's and libplacebo's begins: 1280 columns or more than 576 lines.
        """
        if self.is_rgb:
            return None
        if self.matrix == _DERIVED:
            return _DERIVED_FROM.get(self.primaries)
        if self.matrix in UNSAID:
            if self.gamut == _BT2020:
                return _BT2020
            return 1 if self.width >= 1280 or self.height > 576 else 5
        return _MATRICES.get(self.matrix)


def conversion(primaries: int, transfer: int, peak: float = DEFAULT_PEAK) -> "Conversion | None":
    """What turns RGB of ``primaries`` and ``transfer`` into BT.709, or ``None`` where it is that already.

    ``peak`` is the brightest light of PQ material in cd/m2. The numbers have to be those of `PRIMARIES`, `TRANSFERS`
    or `UNSAID`; primaries that are not said are those of BT.2020 where the transfer characteristic is of BT.2020 or
    BT.2100, else of BT.709.
    """
    gamut = PRIMARIES.get(primaries, PRIMARIES[_BT2020] if transfer in _OF_BT2020 else BT709)
    curve = TRANSFERS.get(transfer, _CAMERA)
    if gamut == BT709 and curve in (_CAMERA, _SRGB):
        return None
    return _conversion(gamut, transfer, peak if transfer == _PQ else DEFAULT_PEAK)


def conversion_from(gamut: Primaries, curve: "Transfer | None" = None) -> "Conversion":
    """What turns RGB of another gamut and curve (the screen's own where it is ``None``) into sRGB."""
    return _without_hdr(gamut, curve or _SRGB)


@dataclass(frozen=True)
class Conversion:
    """RGB of one gamut and transfer characteristic to BT.709: lookup tables of 65536 entries and a matrix.

    ``luminances`` [3] of R, G and B are given where light depends on them (the OOTF of HLG), ``gains`` where HDR is
    mapped: by the square root of the largest of R, G, B as part of ``brightest``.
    """

    light: Floats
    matrix: Floats
    codes: NDArray[np.uint8]
    luminances: Floats | None = None
    ootf: Floats | None = None
    gains: Floats | None = None
    brightest: float = 1.0

    def apply(self, image: NDArray[np.uint16]) -> NDArray[np.uint8]:
        """An image [H, W, 3] of 16-bit code values as 8-bit code values of BT.709."""
        height, width, _ = image.shape
        codes = image.reshape(-1, 3)
        done = np.empty((3, len(codes)), np.uint8)
        for start in range(0, len(codes), _PIXELS_AT_ONCE):
            part = slice(start, start + _PIXELS_AT_ONCE)
            light = self.light.take(codes[part].T, mode="clip")  # [3, pixels]
            if self.luminances is not None and self.ootf is not None:
                light *= self.ootf.take(_index(self.luminances @ light, 1.0), mode="clip")
            if self.gains is not None:
                largest = np.maximum(np.maximum(light[0], light[1]), light[2])
                light *= self.gains.take(_index(largest, self.brightest), mode="clip")
            self.codes.take(_index(self.matrix @ light, 1.0), mode="clip", out=done[:, part])
        return done.reshape(3, height, width).transpose(1, 2, 0)


def _index(values: Floats, largest: float) -> NDArray[np.int64]:
    """The places of values in a table over [0, largest] that is finer where it is dark: by their square root."""
    parts = values.clip(0, largest)
    parts *= 1 / largest
    np.sqrt(parts, out=parts)
    parts *= _LEVELS - 1
    parts += 0.5
    return parts.astype(np.intp)


def _steps() -> NDArray[np.float64]:
    return np.linspace(0, 1, _LEVELS)


def _without_hdr(gamut: Primaries, curve: Transfer) -> Conversion:
    matrix = np.linalg.solve(BT709.to_xyz(), _adapted(gamut.white, BT709.white) @ gamut.to_xyz())
    return Conversion(
        light=curve.to_light(_steps()).astype(np.float32),
        matrix=matrix.astype(np.float32),
        codes=(255 * curve.to_code(_steps() ** 2) + 0.5).astype(np.uint8),
    )


@functools.lru_cache(maxsize=8)
def _conversion(gamut: Primaries, transfer: int, peak: float) -> Conversion:
    plain = _without_hdr(gamut, TRANSFERS.get(transfer, _CAMERA))
    if transfer not in (_PQ, _HLG):
        return plain
    table = _steps() ** 2
    brightest = (_PQ_MAX if transfer == _PQ else DEFAULT_PEAK) / REFERENCE_WHITE
    gains = _eetf_gain(table * brightest * REFERENCE_WHITE, peak).astype(np.float32)
    if transfer == _PQ:
        return replace(plain, light=plain.light * np.float32(brightest), gains=gains, brightest=brightest)
    # BT.2100, table 5: display light is scene light times its luminance to the power of gamma - 1, 1.2 at 1000 cd/m2.
    return replace(
        plain,
        luminances=gamut.to_xyz()[1].astype(np.float32),
        ootf=(table**0.2 * brightest).astype(np.float32),
        gains=gains,
        brightest=brightest,
    )


def _adapted(white: tuple[float, float], target: tuple[float, float]) -> NDArray[np.float64]:
    """The matrix on CIE XYZ that makes one white another one (Bradford, as ICC profiles do)."""
    cone = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
    scale = (cone @ _xyz(target)) / (cone @ _xyz(white))
    return np.linalg.solve(cone, scale[:, None] * cone)


def _eetf_gain(light: NDArray[np.float64], peak: float) -> NDArray[np.float64]:
    """What light in cd/m2 is multiplied by so that ``peak`` becomes the reference white: BT.2408, annex 5.

    Black stays black: the screen's is not known.
    """
    if peak <= REFERENCE_WHITE:
        return np.ones_like(light)
    top = float(pq_code(np.array(peak / _PQ_MAX)))
    target = float(pq_code(np.array(REFERENCE_WHITE / _PQ_MAX))) / top
    knee = 1.5 * target - 0.5
    code = np.minimum(pq_code(light / _PQ_MAX) / top, 1)
    t = (code - knee) / (1 - knee)
    spline = (2 * t**3 - 3 * t**2 + 1) * knee + (t**3 - 2 * t**2 + t) * (1 - knee) + (3 * t**2 - 2 * t**3) * target
    mapped = pq_light(np.where(code < knee, code, spline) * top) * _PQ_MAX
    return np.where(code < knee, 1, mapped / np.maximum(light, math.ulp(1.0)))
