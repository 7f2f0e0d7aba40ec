"""Width and height that the coded pictures in an AVIF or HEIC file say themselves.

A file's boxes say a size, and so does each picture within. Decoders allocate by the second before they compare it with
the first, so the limits are held to both. Of the pictures, only the fields up to the size are read: AV1 specification,
sections 5.5 and 5.9; H.265, sections 7.3.2.2 and 7.3.3.
"""

from __future__ import annotations

from dataclasses import dataclass

from embedserve.errors import ImageFormatError, ImageUndecodable

Size = tuple[int, int]
"""Width and height in pixels."""

_OBU_SEQUENCE, _OBU_FRAME_HEADER, _OBU_FRAME = 1, 3, 6
_KEY_FRAME, _INTRA_ONLY, _SWITCH_FRAME = 0, 2, 3
_SELECT = 2
_HEVC_SPS = 33
_MAX_UNITS = 20_000
"""Parts that a coded picture has: one for each slice or tile, and a few more."""


class _Bits:
    """Bits of some bytes, from the highest of the first."""

    def __init__(self, data: bytes) -> None:
        self.value, self.left = int.from_bytes(data, "big"), 8 * len(data)

    def take(self, count: int = 1) -> int:
        if count > self.left:
            raise ImageUndecodable("the image is damaged: the header of its picture is too short")
        self.left -= count
        return self.value >> self.left & ((1 << count) - 1)

    def exp_golomb(self) -> int:
        zeros = 0
        while not self.take():
            zeros += 1
            if zeros > 32:
                raise ImageUndecodable("the image is damaged: the header of its picture has an impossible number")
        return (1 << zeros) - 1 + self.take(zeros)


def _counted(count: int) -> int:
    if count == _MAX_UNITS:
        raise ImageUndecodable(f"the image is damaged: its picture has more than {_MAX_UNITS} parts")
    return count + 1


# --- AV1 -------------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Sequence:
    size: Size
    reduced: bool
    presentation_bits: int = 0
    screen_content: int = _SELECT
    integer_motion: int = _SELECT
    frame_id_bits: int = 0


def av1_sizes(data: bytes) -> list[Size]:
    """The largest size that each sequence header in the bytes of an image item allows its frames.

    Raises:
        ImageUndecodable: the bytes are damaged.
        ImageFormatError: a frame has another size than its sequence.
    """
    sizes: list[Size] = []
    sequence: _Sequence | None = None
    at = count = 0
    while at < len(data):
        count = _counted(count)
        kind, extended, sized = data[at] >> 3 & 15, data[at] & 4, data[at] & 2
        at += 2 if extended else 1
        length = len(data) - at
        if sized:
            length, at = _leb128(data, at)
        if length > len(data) - at:
            raise ImageUndecodable("the image is damaged: a part of its picture is truncated")
        head = data[at : at + 256]
        if kind == _OBU_SEQUENCE:
            sequence = _av1_sequence(_Bits(head[:length]))
            sizes.append(sequence.size)
        elif kind in (_OBU_FRAME_HEADER, _OBU_FRAME) and sequence is not None and not sequence.reduced:
            _check_av1_frame(_Bits(head[:length]), sequence)
        at += length
    return sizes


def _leb128(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for number, byte in enumerate(data[at : at + 8]):
        value |= (byte & 0x7F) << 7 * number
        if byte < 0x80:
            return value, at + number + 1
    raise ImageUndecodable("the image is damaged: a part of its picture has an impossible length")


def _av1_sequence(bits: _Bits) -> _Sequence:
    bits.take(4)  # seq_profile, still_picture
    reduced = bool(bits.take())
    presentation_bits = 0
    if reduced:
        bits.take(5)
    else:
        presentation_bits = _skip_av1_timing(bits)
    width_bits, height_bits = bits.take(4) + 1, bits.take(4) + 1
    sequence = _Sequence(size=(bits.take(width_bits) + 1, bits.take(height_bits) + 1), reduced=reduced)
    if reduced:
        return sequence
    sequence.presentation_bits = presentation_bits
    if bits.take():  # frame_id_numbers_present_flag
        delta_bits = bits.take(4) + 2
        sequence.frame_id_bits = bits.take(3) + delta_bits + 1
    bits.take(3 + 4)
    order_hint = bits.take()
    if order_hint:
        bits.take(2)
    if not bits.take():  # seq_choose_screen_content_tools
        sequence.screen_content = bits.take()
    if sequence.screen_content and not bits.take():  # seq_choose_integer_mv
        sequence.integer_motion = bits.take()
    return sequence


def _skip_av1_timing(bits: _Bits) -> int:
    """Go to the size. Returns the bits of each frame's presentation time."""
    presentation_bits = delay_bits = 0
    equal_interval = False
    decoder_model = False
    if bits.take():  # timing_info_present_flag
        bits.take(64)
        equal_interval = bool(bits.take())
        if equal_interval:
            bits.exp_golomb()
        decoder_model = bool(bits.take())
        if decoder_model:
            delay_bits = bits.take(5) + 1
            bits.take(32 + 5)
            presentation_bits = bits.take(5) + 1
    initial_delay = bits.take()
    for _ in range(bits.take(5) + 1):
        bits.take(12)
        if bits.take(5) > 7:
            bits.take()
        if decoder_model and bits.take():
            bits.take(2 * delay_bits + 1)
        if initial_delay and bits.take():
            bits.take(4)
    return 0 if equal_interval else presentation_bits


def _check_av1_frame(bits: _Bits, sequence: _Sequence) -> None:
    """Refuse a frame that says a size of its own: it may be larger than that of the sequence."""
    if bits.take():  # show_existing_frame
        return
    kind, shown = bits.take(2), bits.take()
    if shown:
        bits.take(sequence.presentation_bits)
    else:
        bits.take()
    if kind != _SWITCH_FRAME and not (kind == _KEY_FRAME and shown):
        bits.take()  # error_resilient_mode
    bits.take()  # disable_cdf_update
    screen_content = bits.take() if sequence.screen_content == _SELECT else sequence.screen_content
    if screen_content and sequence.integer_motion == _SELECT:
        bits.take()
    bits.take(sequence.frame_id_bits)
    if kind == _SWITCH_FRAME or bits.take():  # frame_size_override_flag
        raise ImageFormatError(
            "the image is AVIF whose frames have sizes of their own, which is not read", hint="save it as PNG or JPEG"
        )


# --- HEVC ------------------------------------------------------------------------------------------------------------


def hevc_sizes(configuration: bytes, data: bytes) -> list[Size]:
    """The size in each sequence parameter set, in the configuration (hvcC) and in the bytes of an image item.

    Raises:
        ImageUndecodable: the bytes are damaged.
    """
    if len(configuration) < 23:
        raise ImageUndecodable("the image is damaged: the configuration of its decoder is too short")
    units = [*_configuration_units(configuration), *_units(data, (configuration[21] & 3) + 1)]
    return [_sps_size(unit) for unit in units if len(unit) > 2 and unit[0] >> 1 & 0x3F == _HEVC_SPS]


def _configuration_units(configuration: bytes) -> list[bytes]:
    units, at = [], 23
    for _ in range(configuration[22]):
        count = int.from_bytes(configuration[at + 1 : at + 3], "big")
        at += 3
        for _ in range(count):
            if at + 2 > len(configuration):
                raise ImageUndecodable("the image is damaged: the configuration of its decoder is truncated")
            size = int.from_bytes(configuration[at : at + 2], "big")
            units.append(configuration[at + 2 : at + 2 + size])
            at += 2 + size
    return units


def _units(data: bytes, length_bytes: int) -> list[bytes]:
    """The sequence parameter sets among the units of a picture, each of which is after its length."""
    units, at, count = [], 0, 0
    while at + length_bytes <= len(data):
        count = _counted(count)
        size = int.from_bytes(data[at : at + length_bytes], "big")
        at += length_bytes
        if data[at : at + 1] and data[at] >> 1 & 0x3F == _HEVC_SPS:
            units.append(data[at : at + min(size, 1024)])
        at += size
    return units


def _sps_size(unit: bytes) -> Size:
    bits = _Bits(unit[2:1024].replace(b"\0\0\3", b"\0\0"))
    bits.take(4)
    sub_layers = bits.take(3)
    bits.take(1 + 88 + 8)
    present = [(bits.take(), bits.take()) for _ in range(sub_layers)]
    if sub_layers:
        bits.take(2 * (8 - sub_layers))
    for profile, level in present:
        bits.take(88 * profile + 8 * level)
    bits.exp_golomb()
    if bits.exp_golomb() == 3:  # chroma_format_idc
        bits.take()
    return bits.exp_golomb(), bits.exp_golomb()
