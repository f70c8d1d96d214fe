"""From what a file's code values mean to sRGB pictures: wide gamuts and high dynamic range become BT.709 at 8 bits.

Transfer and primaries are numbers of ITU-T H.273, which every container uses. High dynamic range is shown as BT.2408 says: its reference
white (203 cd/m2) becomes the picture's white. Where a clip has highlights beyond, they are rolled off towards white on the brightest
channel, so that hues stay; the curve is one for the whole clip, since a curve per frame would flicker.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from utils.types import Array

PQ, HLG, LINEAR = 16, 18, 8
BT2020, P3_DCI, P3_D65 = 9, 11, 12
_NAMES = {PQ: "PQ", HLG: "HLG", LINEAR: "linear light"}

# Reference white of BT.2408 and the peak that HLG is made for, cd/m2.
_WHITE, _HLG_PEAK = 203.0, 1000.0
# Share of the reference white above which light is compressed where the clip is brighter than white.
_KNEE = 0.75

# BT.709 from other primaries, linear light, both D65 (BT.2087; SMPTE EG 432-1).
_TO_BT709 = {
    BT2020: np.array([[1.660491, -0.587641, -0.072850], [-0.124550, 1.132900, -0.008349], [-0.018151, -0.100579, 1.118730]]),
    P3_DCI: np.array([[1.224940, -0.224940, 0.0], [-0.042057, 1.042057, 0.0], [-0.019638, -0.078636, 1.098274]]),
    P3_D65: np.array([[1.224940, -0.224940, 0.0], [-0.042057, 1.042057, 0.0], [-0.019638, -0.078636, 1.098274]]),
}


def pq_to_light(code: Array) -> Array:
    """Light in units of the reference white of PQ code values 0..1 (SMPTE ST 2084)."""
    m1, m2, c1, c2, c3 = 0.1593017578125, 78.84375, 0.8359375, 18.8515625, 18.6875
    root = np.asarray(code, np.float64) ** (1 / m2)
    return 10_000 / _WHITE * (np.maximum(root - c1, 0) / (c2 - c3 * root)) ** (1 / m1)


def hlg_to_scene(code: Array) -> Array:
    """Scene light 0..1 of HLG code values 0..1 (ITU-R BT.2100)."""
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    code = np.asarray(code, np.float64)
    return np.where(code <= 0.5, code**2 / 3, (np.exp((code - c) / a) + b) / 12)


def srgb_to_light(code: Array) -> Array:
    """Linear light 0..1 of sRGB code values 0..1."""
    code = np.asarray(code, np.float64)
    return np.where(code <= 0.04045, code / 12.92, ((code + 0.055) / 1.055) ** 2.4)


def light_to_srgb(light: Array) -> Array:
    """Code values of sRGB, 0..1, of linear light, clipped to 0..1."""
    light = np.clip(light, 0, 1)
    return np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


@dataclass(frozen=True)
class Conversion:
    """From code values of one transfer and one set of primaries to sRGB.

    Attributes:
        transfer: H.273 number.
        primaries: H.273 number.
        peak: brightest channel of the clip in units of the reference white; above 1 highlights are rolled off.
    """

    transfer: int
    primaries: int
    peak: float = 1.0

    @property
    def needed(self) -> bool:
        """Whether pictures differ from their code values at all."""
        return self.transfer in _NAMES or self.primaries in _TO_BT709

    @property
    def high_range(self) -> bool:
        """Whether the transfer holds more than a screen's white."""
        return self.transfer in _NAMES

    @property
    def name(self) -> str:
        """What is converted, in words."""
        wide = {BT2020: "BT.2020", P3_DCI: "P3", P3_D65: "P3"}.get(self.primaries, "")
        return " ".join(part for part in (_NAMES.get(self.transfer, ""), wide) if part)

    @cached_property
    def _light_of(self) -> Array:
        """(65536,) float32 light of every 16-bit code value; HLG's is scene light."""
        code = np.arange(65536) / 65535.0
        if self.transfer == LINEAR:
            return code.astype(np.float32)
        decode = {PQ: pq_to_light, HLG: hlg_to_scene}.get(self.transfer, srgb_to_light)
        return decode(code).astype(np.float32)

    @cached_property
    def _code_of(self) -> Array:
        """(4097,) uint8 sRGB of the square root of light 0..1: square roots keep dark steps fine."""
        return (light_to_srgb((np.arange(4097) / 4096.0) ** 2) * 255 + 0.5).astype(np.uint8)

    def light(self, image: Array) -> Array:
        """(h, w, 3) float32 light in BT.709 primaries, 1 = reference white, of (h, w, 3) uint16 code values."""
        light = self._light_of[image]
        if self.transfer == HLG:
            # The system gamma of a 1000 cd/m2 screen, on luminance (BT.2100).
            luminance = light @ np.array([0.2627, 0.6780, 0.0593], np.float32)
            light *= (_HLG_PEAK / _WHITE) * np.maximum(luminance, 1e-6)[..., None] ** np.float32(0.2)
        matrix = _TO_BT709.get(self.primaries)
        return light if matrix is None else light @ matrix.T.astype(np.float32)

    def apply(self, image: Array) -> Array:
        """(h, w, 3) uint8 sRGB of (h, w, 3) uint16 code values."""
        light = self.light(image)
        if self.peak > 1:
            brightest = np.maximum(light.max(axis=-1, keepdims=True), 1e-6)
            light *= _rolled_off(brightest, self.peak) / brightest
        return self._code_of[(np.sqrt(np.clip(light, 0, 1)) * 4096 + 0.5).astype(np.int32)]


def _rolled_off(light: Array, peak: float) -> Array:
    """Light compressed above the knee so that `peak` becomes 1, with slope 1 at the knee: x -> k + t a / (a + t), a fitting the peak."""
    room, over = 1 - _KNEE, peak - _KNEE
    softness = np.float32(room * over / (over - room))
    above = np.maximum(light - np.float32(_KNEE), 0)
    return np.minimum(light, np.float32(_KNEE)) + above * softness / (softness + above)
