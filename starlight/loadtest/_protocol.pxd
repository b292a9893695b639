# What a server must not do: RFC 6455's rules for the side that receives from a server, and the limits of this client.
#
# Each rule is a kind with a text and the close code that answers it. The functions here judge bytes and return a kind, or
# NO_FAULT; they know no connection and keep nothing. `_receive.pxd` asks them and ends the connection, `Eng.protocol_errors`
# counts by kind. Pointers are borrowed for the call.

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memchr, memcmp

cdef extern from *:
    """
    #include <stdio.h>
    #include <string.h>
    #include <strings.h>

    #define SL_KINDS 24
    static const struct { const char *text; uint16_t code; } sl_kinds[SL_KINDS] = {
        {"answer that is not HTTP", 0},
        {"answer to the upgrade of over 16 KiB", 0},
        {"101 without 'Upgrade: websocket' and 'Connection: Upgrade'", 0},
        {"Sec-WebSocket-Accept is wrong", 0},
        {"subprotocol that was not asked for", 0},
        {"extension that was not asked for", 0},
        {"masked frame", 1002},
        {"reserved bits", 1002},
        {"reserved opcode", 1002},
        {"control frame over 125 bytes", 1002},
        {"fragmented control frame", 1002},
        {"fragments out of order", 1002},
        {"length not in its shortest form", 1002},
        {"length of over 63 bits", 1002},
        {"frame over 512 KiB", 1009},
        {"message over 8 MiB", 1009},
        {"message of over 65,536 fragments", 1008},
        {"close frame of one byte", 1002},
        {"close code that may not be sent", 1002},
        {"close reason that is not UTF-8", 1007},
        {"text that is not UTF-8", 1007},
        {"unfinished messages of over 1 GiB in all", 1009},
        {"malformed NATS operation", 1002},
        {"pings, and no answer to them read", 1008},
    };
    static const char *sl_kind_text(int kind) { return sl_kinds[kind].text; }
    static int sl_kind_code(int kind) { return sl_kinds[kind].code; }

    /* Whether these bytes are UTF-8: no overlong forms, no surrogates, nothing over U+10FFFF. */
    static int sl_is_utf8(const uint8_t *p, size_t n) {
        const uint8_t *end = p + n;
        while (p < end) {
            uint8_t first = *p++, low = 0x80, high = 0xBF;
            int more;
            if (first < 0x80) continue;
            if (first >= 0xC2 && first <= 0xDF) more = 1;
            else if (first >= 0xE0 && first <= 0xEF) more = 2;
            else if (first >= 0xF0 && first <= 0xF4) more = 3;
            else return 0;
            if (first == 0xE0) low = 0xA0;
            if (first == 0xED) high = 0x9F;
            if (first == 0xF0) low = 0x90;
            if (first == 0xF4) high = 0x8F;
            if (end - p < more) return 0;
            for (int i = 0; i < more; i++, low = 0x80, high = 0xBF)
                if (p[i] < low || p[i] > high) return 0;
            p += more;
        }
        return 1;
    }

    /* The value of a header line `name: value` without white space around it, or NULL if it is another header. */
    static const uint8_t *sl_header(const uint8_t *line, size_t n, const char *name, size_t *value_n) {
        size_t name_n = strlen(name);
        if (n <= name_n || line[name_n] != ':' || strncasecmp((const char *)line, name, name_n)) return NULL;
        line += name_n + 1; n -= name_n + 1;
        while (n && (line[0] == ' ' || line[0] == '\\t')) { line++; n--; }
        while (n && (line[n - 1] == ' ' || line[n - 1] == '\\t')) n--;
        *value_n = n;
        return line;
    }

    /* Whether a word stands in a list with commas between. */
    static int sl_lists(const uint8_t *list, size_t n, const char *word, size_t word_n, int fold_case) {
        while (n) {
            const uint8_t *comma = memchr(list, ',', n);
            size_t item_n = comma ? (size_t)(comma - list) : n;
            const uint8_t *item = list;
            size_t rest = comma ? n - item_n - 1 : 0;
            list += n - rest; n = rest;
            while (item_n && (item[0] == ' ' || item[0] == '\\t')) { item++; item_n--; }
            while (item_n && (item[item_n - 1] == ' ' || item[item_n - 1] == '\\t')) item_n--;
            if (item_n == word_n && !(fold_case ? strncasecmp((const char *)item, word, word_n) : memcmp(item, word, word_n)))
                return 1;
        }
        return 0;
    }

    /* What an answer that is no 101 says: its first line, where it redirects to, and when to come back. Bytes of a stranger. */
    static void sl_refusal(char *to, size_t room, const uint8_t *head, size_t n) {
        const uint8_t *line = head, *end = head + n;
        size_t at = 0;
        while (line < end) {
            const uint8_t *stop = memchr(line, '\\r', end - line), *value;
            size_t line_n = (stop ? stop : end) - line, value_n = 0;
            if (line == head)
                at += snprintf(to + at, room - at, "%.*s", line_n > 120 ? 120 : (int)line_n, (const char *)line);
            else if ((value = sl_header(line, line_n, "location", &value_n)) && n > 12 && head[9] == '3')
                at += snprintf(to + at, room - at, "; redirects are not followed, this one is to %.*s",
                               value_n > 120 ? 120 : (int)value_n, (const char *)value);
            else if ((value = sl_header(line, line_n, "retry-after", &value_n)))
                at += snprintf(to + at, room - at, "; Retry-After: %.*s", value_n > 40 ? 40 : (int)value_n, (const char *)value);
            if (at >= room) return;
            if (!stop) return;
            line = stop + 2;
        }
    }
    """
    const int SL_KINDS
    const char *sl_kind_text(int kind) noexcept nogil
    int sl_kind_code(int kind) noexcept nogil
    bint sl_is_utf8(const uint8_t *p, size_t n) noexcept nogil
    const uint8_t *sl_header(const uint8_t *line, size_t n, const char *name, size_t *value_n) noexcept nogil
    bint sl_lists(const uint8_t *list, size_t n, const char *word, size_t word_n, bint fold_case) noexcept nogil
    void sl_refusal(char *to, size_t room, const uint8_t *head, size_t n) noexcept nogil

cdef enum:
    NO_FAULT = -1
    NOT_HTTP = 0                 # in the order of sl_kinds
    LONG_ANSWER
    NO_UPGRADE
    WRONG_ACCEPT
    OTHER_SUBPROTOCOL
    OTHER_EXTENSION
    MASKED_FRAME
    RESERVED_BITS
    RESERVED_OPCODE
    LONG_CONTROL
    FRAGMENTED_CONTROL
    FRAGMENTS
    LONG_FORM
    LENGTH_SIGN
    LONG_FRAME
    LONG_MESSAGE
    MANY_FRAGMENTS
    SHORT_CLOSE
    CLOSE_CODE
    CLOSE_REASON
    TEXT_ENCODING
    UNFINISHED
    NATS_OPERATION
    UNREAD_ANSWERS

    LARGEST_ANSWER = 1 << 14     # to the upgrade; nginx and curl take 8 KiB a header
    LARGEST_FRAME = 1 << 19      # fits the receive buffer beside a torn frame
    LARGEST_CONTROL = 125        # RFC 6455 section 5.5
    ACCEPT_BYTES = 28


cdef inline int header_fault(uint8_t first, uint8_t second, bint in_message) noexcept nogil:
    """What is wrong with a frame, by its first two bytes. `in_message`: fragments are under way."""
    cdef uint8_t opcode = first & 15
    if second & 0x80:
        return MASKED_FRAME
    if first & 0x70:
        return RESERVED_BITS
    if 3 <= opcode <= 7 or opcode > 10:
        return RESERVED_OPCODE
    if opcode >= 8:
        if not first & 0x80:
            return FRAGMENTED_CONTROL
        return LONG_CONTROL if second > LARGEST_CONTROL else NO_FAULT
    return FRAGMENTS if (opcode == 0) != in_message else NO_FAULT


cdef inline int length_fault(uint8_t second, uint64_t size) noexcept nogil:
    """What is wrong with a frame's length. `second`: the header's second byte."""
    if size >> 63:
        return LENGTH_SIGN
    if second == 126 and size < 126 or second == 127 and size < 65536:
        return LONG_FORM
    return LONG_FRAME if size > LARGEST_FRAME else NO_FAULT


cdef inline int close_fault(const uint8_t *p, Py_ssize_t n) noexcept nogil:
    """What is wrong with the payload of a close frame; the codes are those of `close_codes.valid_on_wire`."""
    cdef uint32_t code
    if n == 0:
        return NO_FAULT
    if n == 1:
        return SHORT_CLOSE
    code = <uint32_t>p[0] << 8 | p[1]
    if not (1000 <= code <= 1003 or 1007 <= code <= 1014 or 3000 <= code <= 4999):
        return CLOSE_CODE
    return NO_FAULT if sl_is_utf8(p + 2, n - 2) else CLOSE_REASON


cdef inline int answer_fault(const uint8_t *head, const uint8_t *end, const uint8_t *accept, const uint8_t *protocols,
                             size_t protocols_size) noexcept nogil:
    """What is wrong with a 101 (RFC 6455 section 4.1). `accept`: the 28 bytes that are right; `protocols`: those asked for, with
    commas between."""
    cdef const uint8_t *line = head
    cdef const uint8_t *stop
    cdef const uint8_t *value
    cdef size_t n, size = 0
    cdef bint has_upgrade = False, has_connection = False, has_accept = False
    while line < end:
        stop = <const uint8_t *>memchr(line, 13, end - line)
        if stop == NULL:
            stop = end
        n = stop - line
        value = sl_header(line, n, b"upgrade", &size)
        if value != NULL:
            has_upgrade = sl_lists(value, size, b"websocket", 9, True)
        value = sl_header(line, n, b"connection", &size)
        if value != NULL:
            has_connection = has_connection or sl_lists(value, size, b"upgrade", 7, True)
        value = sl_header(line, n, b"sec-websocket-accept", &size)
        if value != NULL:
            if size != ACCEPT_BYTES or memcmp(value, accept, ACCEPT_BYTES) != 0:
                return WRONG_ACCEPT
            has_accept = True
        value = sl_header(line, n, b"sec-websocket-protocol", &size)
        if value != NULL and not (size and sl_lists(protocols, protocols_size, <const char *>value, size, False)):
            return OTHER_SUBPROTOCOL
        value = sl_header(line, n, b"sec-websocket-extensions", &size)
        if value != NULL and size:
            return OTHER_EXTENSION
        line = stop + 2
    if not (has_upgrade and has_connection):
        return NO_UPGRADE
    return NO_FAULT if has_accept else WRONG_ACCEPT
