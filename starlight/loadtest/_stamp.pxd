# The stamp: what every message of the harness carries, and how it is found again.
#
#   "xxxx…xxxx~SSSNNNNNCCCCC"        the `data` of a message: one JSON string, at least 16 bytes with its quotes
#    padding  | |  |    |
#             | |  |    checksum, 30 bits, of every byte of the data before it (opening quote included)
#             | |  number of the message within its stream, 30 bits
#             | stream (who sends to which group), 18 bits
#             mark; the padding never contains it
#
# Six bits a character (0-9 A-Z a-z - _), so nothing has to be escaped in JSON, in text frames or in NATS, and 16 bytes of payload are
# enough for sender, number and checksum. Servers splice or echo the data verbatim, so the stamp stands at a constant distance from the
# end of the message; the engine remembers that distance and searches only when it is wrong. The send time is not in the payload: the
# sender keeps it in a table under (stream, number), because sender and receiver are both ours.

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memchr

cdef extern from *:
    """
    #include <stdint.h>
    #include <stddef.h>
    #include <string.h>

    #define SL_STAMP_LEN 14           /* mark, 3 + 5 + 5 characters; the closing quote follows */
    #define SL_BAD 0x80000000u

    static uint32_t sl_decode_table[256];
    static const char sl_alphabet[65] = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz-_";

    static void sl_stamp_init(void) {
        for (int i = 0; i < 256; i++) sl_decode_table[i] = SL_BAD;
        for (uint32_t i = 0; i < 64; i++) sl_decode_table[(uint8_t)sl_alphabet[i]] = i;
    }

    static inline void sl_put(uint8_t *p, uint32_t value, int characters) {
        for (int i = characters - 1; i >= 0; i--) { p[i] = (uint8_t)sl_alphabet[value & 63]; value >>= 6; }
    }

    /* Three fields from the 13 characters after the mark; the result has SL_BAD set when a character is not of the alphabet. */
    static inline uint32_t sl_get(const uint8_t *p, uint32_t *stream, uint32_t *number, uint32_t *checksum) {
        const uint32_t *t = sl_decode_table;
        uint32_t a = t[p[0]], b = t[p[1]], c = t[p[2]];
        uint32_t d = t[p[3]], e = t[p[4]], f = t[p[5]], g = t[p[6]], h = t[p[7]];
        uint32_t i = t[p[8]], j = t[p[9]], k = t[p[10]], l = t[p[11]], m = t[p[12]];
        *stream = a << 12 | b << 6 | c;
        *number = d << 24 | e << 18 | f << 12 | g << 6 | h;
        *checksum = i << 24 | j << 18 | k << 12 | l << 6 | m;
        return (a | b | c | d | e | f | g | h | i | j | k | l | m) & SL_BAD;
    }

    static inline uint64_t sl_mix(uint64_t a, uint64_t b) {
        __uint128_t r = (__uint128_t)a * b;
        return (uint64_t)r ^ (uint64_t)(r >> 64);
    }
    static inline uint64_t sl_load(const uint8_t *p) { uint64_t v; memcpy(&v, p, 8); return v; }

    /* A multiply-and-fold hash (after wyhash), four lanes for long data: tens of GB/s, so that every delivery can be checked. It finds
       accidents, it is no signature. 30 bits: one damaged message in 10^9 passes. */
    static inline uint32_t sl_checksum(const uint8_t *p, size_t n) {
        const uint64_t k0 = 0xa0761d6478bd642full, k1 = 0xe7037ed1a0b428dbull, k2 = 0x8ebc6af09c88c6e3ull;
        uint64_t h = k0 ^ (uint64_t)n, tail[2] = {0, 0};
        if (n >= 64) {
            uint64_t h1 = h ^ k1, h2 = h ^ k2, h3 = h ^ (k1 + k2);
            do {
                h  = sl_mix(sl_load(p) ^ k1 ^ h, sl_load(p + 8) ^ k2);
                h1 = sl_mix(sl_load(p + 16) ^ k1 ^ h1, sl_load(p + 24) ^ k2);
                h2 = sl_mix(sl_load(p + 32) ^ k1 ^ h2, sl_load(p + 40) ^ k2);
                h3 = sl_mix(sl_load(p + 48) ^ k1 ^ h3, sl_load(p + 56) ^ k2);
                p += 64; n -= 64;
            } while (n >= 64);
            h = sl_mix(h ^ h1, k1) ^ sl_mix(h2 ^ k2, h3 ^ k0);
        }
        while (n >= 16) { h = sl_mix(sl_load(p) ^ k1 ^ h, sl_load(p + 8) ^ k2); p += 16; n -= 16; }
        memcpy(tail, p, n);
        h = sl_mix(tail[0] ^ k2 ^ h, tail[1] ^ k0);
        return (uint32_t)(h ^ h >> 32) & 0x3fffffffu;
    }

    /* payload[i] ^= key[i & 3], eight bytes at a time; `key` holds the mask twice. */
    static inline void sl_mask(uint8_t *p, size_t n, uint64_t key) {
        while (n >= 8) { uint64_t v; memcpy(&v, p, 8); v ^= key; memcpy(p, &v, 8); p += 8; n -= 8; }
        for (size_t i = 0; i < n; i++) p[i] ^= (uint8_t)(key >> (8 * i));
    }
    """
    const int SL_STAMP_LEN
    const uint32_t SL_BAD
    void sl_stamp_init() noexcept nogil
    void sl_put(uint8_t *p, uint32_t value, int characters) noexcept nogil
    uint32_t sl_get(const uint8_t *p, uint32_t *stream, uint32_t *number, uint32_t *checksum) noexcept nogil
    uint32_t sl_checksum(const uint8_t *p, size_t n) noexcept nogil
    void sl_mask(uint8_t *p, size_t n, uint64_t key) noexcept nogil


cdef inline const uint8_t *stamp_find(const uint8_t *p, Py_ssize_t n) noexcept nogil:
    """The mark of the first well-formed stamp in p[0:n] with a byte behind it, or NULL. Slow path: messages whose stamp is not where it used to be."""
    cdef const uint8_t *end = p + n
    cdef const uint8_t *mark
    cdef uint32_t stream, number, checksum
    while end - p > SL_STAMP_LEN:
        mark = <const uint8_t *>memchr(p, 0x7E, end - p - SL_STAMP_LEN)
        if mark == NULL:
            return NULL
        if sl_get(mark + 1, &stream, &number, &checksum) == 0:
            return mark
        p = mark + 1
    return NULL


cdef inline void stamp_write(uint8_t *p, uint32_t size, uint32_t stream, uint32_t number, const uint8_t *padding) noexcept nogil:
    """Write data of `size` >= 16 bytes at p. `padding` (borrowed for the call) offers at least size - 16 bytes."""
    cdef uint32_t fill = size - 16
    cdef uint8_t *q = p + 1 + fill
    p[0] = 0x22
    if fill:
        memcpy_(p + 1, padding, fill)
    q[0] = 0x7E
    sl_put(q + 1, stream, 3)
    sl_put(q + 4, number, 5)
    sl_put(q + 9, sl_checksum(p, fill + 10), 5)
    q[14] = 0x22


cdef extern from "string.h" nogil:
    void *memcpy_ "memcpy"(void *to, const void *source, size_t n)
