"""The file of a sample, read and decoded: only ever the bytes that were hashed. Draws and renders no view."""

from __future__ import annotations

from torch import Tensor

from data.decode import decode, read_bytes
from data.errors import BadImage, UnreadableImage
from data.samples import Sample, content_key


def read_encoded(sample: Sample) -> bytes:
    """The bytes of a sample's file; UnreadableImage if the file is gone or not the one hashed."""
    encoded = read_bytes(sample.path)
    if content_key(encoded) != sample.key:
        raise UnreadableImage("the file changed while it was in use", sample.path)
    return encoded


def read_sample(sample: Sample) -> Tensor:
    """The decoded image of a sample, uint8 [3, H, W]; the errors of `read_encoded`, and BadImage."""
    return decode(read_encoded(sample), sample.path)


def is_decodable(sample: Sample) -> bool:
    """Whether the file holds an image; decodes it. UnreadableImage where the file cannot be read."""
    try:
        read_sample(sample)
    except UnreadableImage:
        raise
    except BadImage:
        return False
    return True
