"""What a node speaks unless it is told otherwise: the native protocol alone."""

from typing import Final

from starlight.protocols.base import Codecs
from starlight.protocols.native.codec import NATIVE

SPOKEN: Final = Codecs(NATIVE)
