"""What a node speaks unless it is told otherwise: the native protocol alone."""

from typing import Final

from starlight.protocols.base import Codec, Codecs
from starlight.protocols.native import codec

NATIVE: Final[Codec] = codec
SPOKEN: Final = Codecs(NATIVE)
