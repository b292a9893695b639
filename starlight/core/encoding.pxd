# Encodings: how a message becomes bytes in the arena. An encoding is a codec and a framing; they are numbered when a core is made.
#
#   message:   data, once, and for each codec a head and a tail
#   written:   FRAMES  [RFC 6455 header][head][data][tail]          one message a frame
#              LINES   [head][data][tail]\n                         the header of a merged frame is written at flush
#
# Law: what a codec's bytes mean is not known here; its head and tail are copied as they are, and so is the data, but for line
# breaks where lines separate messages. Each encoding has lanes of its own, and nothing is written into those that have no
# receiver. A core has at most MAX_ENCODINGS, so that a channel's list of those that its members use has room for all.

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy
from starlight.core.arena cimport chunk_t
from starlight.core.wire cimport wire_header_size, wire_write_header

cdef enum framing_t:
    FRAMING_FRAMES = 0           # one message a frame, its header included in the arena
    FRAMING_LINES = 1            # "message\n" in the arena; text frames of several, whose headers are written at flush

cdef enum:
    MAX_ENCODINGS = 16           # so there are no more codecs either

cdef enum:                       # the lanes of an encoding
    SHARED = 0                   # for frames that many share,
    SINGLE = 1                   # and for those to one receiver, which would break everyone else's run of contiguous memory
    N_SHARINGS = 2

ctypedef struct encoding_t:
    chunk_t* lanes[N_SHARINGS]   # open chunks, one reference each, or NULL
    uint8_t codec                # whose heads and tails it takes
    uint8_t framing
    uint8_t opcode               # of its frames
    uint64_t n_publications      # written in it; these two only ever grow
    uint64_t n_bytes             # that they took

ctypedef struct affix_t:         # what a codec puts around the data; borrowed for one call
    const char* head
    size_t head_bytes
    const char* tail
    size_t tail_bytes

ctypedef struct message_t:       # borrowed for one call
    const char* data
    size_t data_bytes
    uint8_t codec_mask           # 0: all codecs take the first affix; 0xFF: each its own
    affix_t affixes[MAX_ENCODINGS]


cdef inline affix_t* affix_of(message_t* m, uint8_t codec) noexcept nogil:
    return &m.affixes[codec & m.codec_mask]


cdef inline uint64_t payload_bytes(message_t* m, affix_t* affix) noexcept nogil:
    return affix.head_bytes + m.data_bytes + affix.tail_bytes


cdef inline uint32_t written_bytes(message_t* m, affix_t* affix, uint8_t framing) noexcept nogil:
    cdef uint64_t n_bytes = payload_bytes(m, affix)
    return <uint32_t>(n_bytes + (wire_header_size(n_bytes) if framing == FRAMING_FRAMES else 1))


cdef inline void write_message(char* to, message_t* m, affix_t* affix, uint8_t framing, uint8_t opcode) noexcept nogil:
    cdef size_t i
    if framing == FRAMING_FRAMES:
        to += wire_write_header(to, opcode, payload_bytes(m, affix))
    memcpy(to, affix.head, affix.head_bytes)
    to += affix.head_bytes
    memcpy(to, m.data, m.data_bytes)
    if framing == FRAMING_LINES:                         # a line break in valid JSON is white space; here it would separate
        for i in range(m.data_bytes):
            if to[i] == c"\n" or to[i] == c"\r":
                to[i] = c" "
    to += m.data_bytes
    memcpy(to, affix.tail, affix.tail_bytes)
    if framing == FRAMING_LINES:
        to[affix.tail_bytes] = c"\n"
