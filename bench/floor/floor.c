/* floor: a bare epoll WebSocket server, the limit of plain system calls.
 *
 * Strategy. Nothing that a real server needs beyond correct streams: no limits, no checks, no eviction by policy. What
 * remains is the cost that no server on send(2) can avoid, so that a ratio to it says how much is left to gain.
 *
 *   --mode message   one send per client and message: a frame goes out the moment it is made
 *   --mode turn      one send per client and loop turn: all that was read in one epoll batch is framed first, once, into
 *                    one shared log, and then every client gets that whole range in one call
 *
 * Law. A broadcast frame is written once into the log and never copied again. A client whose socket is full ("behind")
 * remembers only its position in the log; it is written to again when EPOLLOUT says so. Frames with one receiver
 * (replies, directs) go to that client's private buffer. Order to one client: the rest of a torn private frame, shared
 * frames, private frames; so a sender sees its own publication before the ok. Nothing is lost, torn or swapped; a client
 * that falls LOG_BYTES / 2 behind is cut off, because memory has an end.
 *
 * It understands the load generator's messages by a byte scan, with the fields in the order in which the generator writes
 * them (`data` last): login, join, broadcast, publish (to all: there are no channels here), direct, ping. Any other text is
 * broadcast verbatim (raw mode).
 *
 * Build: gcc -O2 -o floor floor.c     Run: ./floor --mode turn [--port 0] [--sndbuf bytes] [--cpu n]
 * Prints `listening <port>` when it accepts connections.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

enum {
    LOG_BYTES = 32 << 20,    /* a power of two; mapped twice in a row, so that any range of it is contiguous */
    FLUSH_BYTES = 1 << 20,   /* a turn that makes more than this is flushed early, as Starlight does */
    READ_BYTES = 256 << 10,  /* at most so much is read from one socket in a turn */
    FRAME_BYTES = 1 << 20,   /* longest frame accepted */
    EVENTS = 1024,
    NAME_BYTES = 64,
    USERS = 1 << 16,         /* slots of the user table, a power of two above twice the clients */
};

struct client {
    int fd;
    uint8_t open;      /* the handshake is done */
    uint8_t dead;      /* to be closed at the end of the turn */
    uint8_t behind;    /* the socket is full; `position` holds; EPOLLOUT is asked for */
    uint8_t dirty;     /* in `dirty_list` */
    uint64_t position; /* next byte of the log to send; only while behind */
    char *private;     /* owned: frames for this client alone, [private_start, private_end) unsent */
    uint32_t private_start, private_end, private_size;
    uint32_t torn_end; /* private bytes before this were begun: they go before shared ones; 0 if none */
    uint32_t index;    /* place in `clients` */
    char *input;       /* owned: an incomplete frame or handshake from earlier reads */
    uint32_t input_length, input_size;
    uint32_t user_length;
    char user[NAME_BYTES];
};

static int turn_mode = 1, epoll_fd, listen_fd;
static struct client **clients; /* dense, owned */
static uint32_t client_count, clients_size, behind_count;
static struct client *users[USERS];
static struct client **dirty_list, **dead_list;
static uint32_t dirty_count, dead_count, lists_size;
static char *log_base;
static uint64_t log_head, turn_start; /* log bytes [turn_start, log_head) were made in this turn */
static char *read_buffer;             /* FRAME_BYTES + 64 carried over, READ_BYTES more read */

static void die(const char *what) { perror(what); exit(1); }
static void *grow(void *memory, size_t size) { if (!(memory = realloc(memory, size))) die("realloc"); return memory; }
static char *log_at(uint64_t position) { return log_base + (position & (LOG_BYTES - 1)); }

/* ---- handshake: SHA-1 and base64 (RFC 6455 section 4.2.2) ---- */

static uint32_t rotl(uint32_t x, int n) { return x << n | x >> (32 - n); }

static void sha1_block(uint32_t h[5], const uint8_t *block) {
    uint32_t w[80], a = h[0], b = h[1], c = h[2], d = h[3], e = h[4];
    for (int i = 0; i < 16; i++)
        w[i] = (uint32_t)block[4 * i] << 24 | block[4 * i + 1] << 16 | block[4 * i + 2] << 8 | block[4 * i + 3];
    for (int i = 16; i < 80; i++) w[i] = rotl(w[i - 3] ^ w[i - 8] ^ w[i - 14] ^ w[i - 16], 1);
    for (int i = 0; i < 80; i++) {
        uint32_t f, k;
        if (i < 20) f = (b & c) | (~b & d), k = 0x5A827999;
        else if (i < 40) f = b ^ c ^ d, k = 0x6ED9EBA1;
        else if (i < 60) f = (b & c) | (b & d) | (c & d), k = 0x8F1BBCDC;
        else f = b ^ c ^ d, k = 0xCA62C1D6;
        uint32_t t = rotl(a, 5) + f + e + k + w[i];
        e = d, d = c, c = rotl(b, 30), b = a, a = t;
    }
    h[0] += a, h[1] += b, h[2] += c, h[3] += d, h[4] += e;
}

/* `key` is 24 bytes; `accept` gets 28 characters. The 60 bytes hashed take exactly two blocks. */
static void accept_key(const char *key, char *accept) {
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    uint8_t text[128] = {0}, digest[21] = {0};
    uint32_t h[5] = {0x67452301, 0xEFCDAB89, 0x98BADCFE, 0x10325476, 0xC3D2E1F0};
    memcpy(text, key, 24);
    memcpy(text + 24, "258EAFA5-E914-47DA-95CA-C5AB0DC85B11", 36);
    text[60] = 0x80, text[126] = 480 >> 8, text[127] = 480 & 255;
    sha1_block(h, text);
    sha1_block(h, text + 64);
    for (int i = 0; i < 20; i++) digest[i] = h[i / 4] >> (24 - 8 * (i % 4));
    for (int i = 0; i < 7; i++) {
        uint32_t v = digest[3 * i] << 16 | digest[3 * i + 1] << 8 | digest[3 * i + 2];
        for (int j = 0; j < 4; j++) accept[4 * i + j] = digits[v >> (18 - 6 * j) & 63];
    }
    accept[27] = '=';
}

/* ---- writing ---- */

static void mark_dead(struct client *c) {
    if (c->dead) return;
    c->dead = 1;
    dead_list[dead_count++] = c;
}

static void mark_dirty(struct client *c) {
    if (c->dirty || c->dead) return;
    c->dirty = 1;
    dirty_list[dirty_count++] = c;
}

static void watch(struct client *c, uint32_t events) {
    struct epoll_event event = {.events = events, .data.ptr = c};
    epoll_ctl(epoll_fd, EPOLL_CTL_MOD, c->fd, &event);
}

static void set_behind(struct client *c, uint64_t position) {
    c->position = position;
    if (c->behind) return;
    c->behind = 1;
    behind_count++;
    watch(c, EPOLLIN | EPOLLOUT);
}

/* Send the log range to a client that has nothing else to be sent: the one call that the floor is about. */
static inline void send_shared(struct client *c, uint64_t from, uint64_t to) {
    ssize_t sent = send(c->fd, log_at(from), to - from, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (__builtin_expect(sent == (ssize_t)(to - from), 1)) return;
    if (sent < 0 && errno != EAGAIN) mark_dead(c);
    else set_behind(c, from + (sent > 0 ? sent : 0));
}

/* Send all that a client has to get: the begun private frames, the log from `from` on, the other private frames. */
static void send_all(struct client *c, uint64_t from) {
    struct iovec parts[3];
    uint32_t torn = c->torn_end > c->private_start ? c->torn_end - c->private_start : 0;
    uint32_t rest = c->private_end - c->private_start - torn;
    uint64_t shared = log_head - from;
    parts[0] = (struct iovec){c->private + c->private_start, torn};
    parts[1] = (struct iovec){log_at(from), shared};
    parts[2] = (struct iovec){c->private + c->private_start + torn, rest};
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = 3};
    ssize_t sent = 0;
    if (torn + shared + rest) {
        sent = sendmsg(c->fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent < 0 && errno != EAGAIN) { mark_dead(c); return; }
        if (sent < 0) sent = 0;
    }
    if ((uint64_t)sent == torn + shared + rest) {
        c->private_start = c->private_end = c->torn_end = 0;
        if (c->behind) { c->behind = 0; behind_count--; watch(c, EPOLLIN); }
        return;
    }
    if ((uint64_t)sent < torn) {
        c->private_start += sent;
        set_behind(c, from);
    } else if ((uint64_t)sent <= torn + shared) {
        c->private_start += torn, c->torn_end = 0;
        set_behind(c, from + sent - torn);
    } else {
        c->private_start += sent - shared, c->torn_end = c->private_end;
        set_behind(c, log_head);
    }
}

/* End of a turn (or of a message, in message mode): write what was made to all who are not waiting for EPOLLOUT. */
static void flush(void) {
    if (log_head != turn_start)
        for (uint32_t i = 0; i < client_count; i++) {
            struct client *c = clients[i];
            if (c->behind | c->dead | !c->open) continue;
            if (c->private_end) send_all(c, turn_start);
            else send_shared(c, turn_start, log_head);
        }
    else
        for (uint32_t i = 0; i < dirty_count; i++)
            if (!dirty_list[i]->behind && !dirty_list[i]->dead) send_all(dirty_list[i], log_head);
    for (uint32_t i = 0; i < dirty_count; i++) dirty_list[i]->dirty = 0;
    dirty_count = 0;
    if (!behind_count) log_head = 0; /* nobody needs the log: begin again in memory that is in the cache */
    turn_start = log_head;
}

static void cut_off_the_slowest(void) {
    for (uint32_t i = 0; i < client_count; i++)
        if (clients[i]->behind && log_head - clients[i]->position > LOG_BYTES / 2) mark_dead(clients[i]);
}

static uint32_t put_header(uint8_t *out, int opcode, uint64_t length) {
    out[0] = 0x80 | opcode;
    if (length < 126) { out[1] = length; return 2; }
    if (length < 65536) { out[1] = 126, out[2] = length >> 8, out[3] = length; return 4; }
    out[1] = 127;
    for (int i = 0; i < 8; i++) out[2 + i] = length >> (56 - 8 * i);
    return 10;
}

static void to_all(const char *head, uint32_t head_length, const char *data, uint32_t length) {
    uint8_t *out = (uint8_t *)log_at(log_head);
    uint32_t n = put_header(out, 1, (uint64_t)head_length + length);
    memcpy(out + n, head, head_length);
    if (length) memcpy(out + n + head_length, data, length);
    log_head += n + head_length + length;
    if (!turn_mode || log_head - turn_start > FLUSH_BYTES) {
        flush();
        if (behind_count) cut_off_the_slowest();
    }
}

static void to_one(struct client *c, int opcode, const char *head, uint32_t head_length, const char *data, uint32_t length) {
    uint32_t need = c->private_end + 10 + head_length + length;
    if (need > LOG_BYTES / 2) { mark_dead(c); return; }
    if (need > c->private_size) c->private = grow(c->private, c->private_size = 2 * need);
    uint8_t *out = (uint8_t *)c->private + c->private_end;
    uint32_t n = put_header(out, opcode, (uint64_t)head_length + length);
    memcpy(out + n, head, head_length);
    if (length) memcpy(out + n + head_length, data, length);
    c->private_end += n + head_length + length;
    mark_dirty(c);
    if (!turn_mode) flush();
}

/* ---- the messages ---- */

static uint32_t user_slot(const char *name, uint32_t length) {
    uint32_t hash = 2166136261u;
    for (uint32_t i = 0; i < length; i++) hash = (hash ^ (uint8_t)name[i]) * 16777619u;
    uint32_t slot = hash & (USERS - 1);
    while (users[slot] && (users[slot]->user_length != length || memcmp(users[slot]->user, name, length)))
        slot = (slot + 1) & (USERS - 1);
    return slot;
}

/* Put a user's entry out of the table without breaking the probe runs behind it. */
static void forget_user(struct client *c) {
    uint32_t slot = user_slot(c->user, c->user_length);
    if (users[slot] != c) return;
    users[slot] = NULL;
    for (slot = (slot + 1) & (USERS - 1); users[slot]; slot = (slot + 1) & (USERS - 1)) {
        struct client *moved = users[slot];
        users[slot] = NULL;
        users[user_slot(moved->user, moved->user_length)] = moved;
    }
}

/* Find `key` in the message's head; return where its value begins and how long it is up to `end`, or NULL. */
static const char *value(const char *text, uint32_t length, const char *key, char end, uint32_t *value_length) {
    const char *at = memmem(text, length, key, strlen(key)), *stop;
    if (!at) return NULL;
    at += strlen(key);
    if (!(stop = memchr(at, end, text + length - at))) return NULL;
    *value_length = stop - at;
    return at;
}

static void login(struct client *c, const char *text, uint32_t length) {
    static const char welcome[] = "{\"type\":\"welcome\"}";
    uint32_t n;
    const char *user = value(text, length, "\"user\":\"", '"', &n);
    if (user && n < NAME_BYTES && client_count < USERS / 2) {
        if (c->user_length) forget_user(c);
        memcpy(c->user, user, n);
        c->user_length = n;
        users[user_slot(user, n)] = c;
    }
    to_one(c, 1, welcome, sizeof welcome - 1, NULL, 0);
}

/* A small text being put together; longer names than it has room for are cut. */
struct text { uint32_t length; char bytes[512]; };

static void add(struct text *t, const char *bytes, uint32_t length) {
    if (length > sizeof t->bytes - t->length) length = sizeof t->bytes - t->length;
    memcpy(t->bytes + t->length, bytes, length);
    t->length += length;
}
#define ADD(t, literal) add(t, literal, sizeof(literal) - 1)

static void add_number(struct text *t, uint32_t number) {
    char digits[10];
    uint32_t at = sizeof digits;
    do digits[--at] = '0' + number % 10;
    while (number /= 10);
    add(t, digits + at, sizeof digits - at);
}

static void reply_ok(struct client *c, const char *text, uint32_t length, const char *field, uint32_t number) {
    struct text reply = {0};
    uint32_t n;
    const char *id = value(text, length, "\"id\":", ',', &n);
    if (!id && (id = value(text, length, "\"id\":", '}', &n)) == NULL) return;
    ADD(&reply, "{\"type\":\"ok\",\"id\":");
    add(&reply, id, n);
    if (field) add(&reply, field, strlen(field)), add_number(&reply, number);
    ADD(&reply, "}");
    to_one(c, 1, reply.bytes, reply.length, NULL, 0);
}

static void broadcast(struct client *c, const char *text, uint32_t prefix, const char *data, uint32_t data_length) {
    struct text head = {0};
    ADD(&head, "{\"type\":\"broadcast\",\"from\":\"");
    add(&head, c->user, c->user_length);
    ADD(&head, "\",\"data\":");
    to_all(head.bytes, head.length, data, data_length);
    reply_ok(c, text, prefix, ",\"clients\":", client_count);
}

static void publish(struct client *c, const char *text, uint32_t prefix, const char *data, uint32_t data_length) {
    struct text head = {0};
    uint32_t n;
    const char *channel = value(text, prefix, "\"channel\":\"", '"', &n);
    if (!channel) return;
    ADD(&head, "{\"type\":\"publication\",\"channel\":\"");
    add(&head, channel, n);
    ADD(&head, "\",\"from\":\"");
    add(&head, c->user, c->user_length);
    ADD(&head, "\",\"data\":");
    to_all(head.bytes, head.length, data, data_length);
    reply_ok(c, text, prefix, ",\"scope\":\"node\",\"subscribers\":", client_count);
}

static void direct(struct client *c, const char *text, uint32_t prefix, const char *data, uint32_t data_length) {
    struct text head = {0};
    uint32_t n;
    const char *to = value(text, prefix, "\"to\":\"", '"', &n);
    struct client *receiver = to ? users[user_slot(to, n)] : NULL;
    if (!receiver) return;
    ADD(&head, "{\"type\":\"direct\",\"from\":\"");
    add(&head, c->user, c->user_length);
    ADD(&head, "\",\"data\":");
    to_one(receiver, 1, head.bytes, head.length, data, data_length);
    reply_ok(c, text, prefix, ",\"clients\":", 1);
}

/* One whole text message: which of the generator's commands it is shows in a few bytes. */
static void message(struct client *c, const char *text, uint32_t length) {
    if (length < 16 || memcmp(text, "{\"type\":\"", 9)) { to_all(text, length, NULL, 0); return; }
    const char *type = text + 9;
    if (!memcmp(type, "login\"", 6)) { login(c, text, length); return; }
    if (!memcmp(type, "join\"", 5) || !memcmp(type, "leave", 5)) { reply_ok(c, text, length, NULL, 0); return; }
    if (!memcmp(type, "ping\"", 5)) { to_one(c, 1, "{\"type\":\"pong\"}", 15, NULL, 0); return; }
    const char *data = memmem(text, length, "\"data\":", 7);
    if (!data) return;
    uint32_t prefix = data - text;
    data += 7;
    uint32_t data_length = text + length - data; /* the value and the object's own closing brace */
    if (!memcmp(type, "broadcast", 9)) broadcast(c, text, prefix, data, data_length);
    else if (!memcmp(type, "publish\"", 8)) publish(c, text, prefix, data, data_length);
    else if (!memcmp(type, "direct\"", 7)) direct(c, text, prefix, data, data_length);
}

/* ---- reading ---- */

static void unmask(uint8_t *data, uint64_t length, const uint8_t *mask) {
    uint64_t wide, i = 0;
    uint32_t narrow;
    memcpy(&narrow, mask, 4);
    wide = (uint64_t)narrow << 32 | narrow;
    for (; i + 8 <= length; i += 8) {
        uint64_t word;
        memcpy(&word, data + i, 8);
        word ^= wide;
        memcpy(data + i, &word, 8);
    }
    for (; i < length; i++) data[i] ^= mask[i & 3];
}

/* Answer the upgrade request if it is whole; return how many bytes it took, 0 if more are needed. */
static uint32_t handshake(struct client *c, char *in, uint32_t length) {
    char out[256], accept[28];
    char *end = memmem(in, length, "\r\n\r\n", 4);
    if (!end) return 0;
    *end = 0;
    char *key = strcasestr(in, "\r\nsec-websocket-key:"), *offer = strcasestr(in, "\r\nsec-websocket-protocol:");
    if (!key) { mark_dead(c); return 0; }
    for (key += 20; *key == ' '; key++) {}
    if (end - key < 24) { mark_dead(c); return 0; }
    accept_key(key, accept);
    int n = snprintf(out, sizeof out, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                     "Sec-WebSocket-Accept: %.28s\r\n%s\r\n", accept,
                     offer && strstr(offer, "starlight.v1") ? "Sec-WebSocket-Protocol: starlight.v1\r\n" : "");
    if (send(c->fd, out, n, MSG_NOSIGNAL | MSG_DONTWAIT) != n) mark_dead(c);
    if (log_head != turn_start) flush(); /* what was made before this client came is not for it */
    c->open = 1;
    return end + 4 - in;
}

/* Handle one frame; return the bytes it took, 0 if it is not whole yet. */
static uint32_t frame(struct client *c, uint8_t *in, uint32_t available) {
    uint32_t at = 2;
    if (available < 6) return 0;
    uint64_t length = in[1] & 127;
    if (length == 126) length = in[2] << 8 | in[3], at = 4;
    else if (length == 127) {
        if (available < 14) return 0;
        for (length = 0; at < 10; at++) length = length << 8 | in[at];
    }
    if (length > FRAME_BYTES || !(in[1] & 128) || !(in[0] & 128)) { mark_dead(c); return 0; }
    if (available < at + 4 + length) return 0;
    uint8_t *payload = in + at + 4;
    unmask(payload, length, in + at);
    switch (in[0] & 15) {
    case 1: case 2: message(c, (char *)payload, length); break;
    case 8: to_one(c, 8, (char *)payload, length < 2 ? 0 : 2, NULL, 0); flush(); mark_dead(c); break;
    case 9: to_one(c, 10, (char *)payload, length, NULL, 0); break;
    case 10: break;
    default: mark_dead(c);
    }
    return at + 4 + length;
}

static void readable(struct client *c) {
    uint32_t have = c->input_length, used = 0, took;
    if (have) memcpy(read_buffer, c->input, have);
    ssize_t got = recv(c->fd, read_buffer + have, READ_BYTES, MSG_DONTWAIT);
    if (got <= 0) {
        if (got == 0 || errno != EAGAIN) mark_dead(c);
        return;
    }
    have += got;
    if (!c->open) used = handshake(c, read_buffer, have);
    if (c->open)
        while (!c->dead && (took = frame(c, (uint8_t *)read_buffer + used, have - used))) used += took;
    c->input_length = have - used;
    if (c->input_length > FRAME_BYTES + 14) { mark_dead(c); return; }
    if (c->input_length > c->input_size) c->input = grow(c->input, c->input_size = c->input_length + 4096);
    if (c->input_length) memcpy(c->input, read_buffer + used, c->input_length);
}

/* ---- connections ---- */

static void accept_all(void) {
    int fd, one = 1;
    while ((fd = accept4(listen_fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
        struct client *c = calloc(1, sizeof *c);
        if (!c) die("calloc");
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        if (client_count + dead_count + 1 >= clients_size) {
            clients_size = 2 * clients_size + 64;
            lists_size = 2 * clients_size;
            clients = grow(clients, clients_size * sizeof *clients);
            dirty_list = grow(dirty_list, lists_size * sizeof *dirty_list);
            dead_list = grow(dead_list, lists_size * sizeof *dead_list);
        }
        c->fd = fd, c->index = client_count;
        clients[client_count++] = c;
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
        epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event);
    }
}

static void bury_the_dead(void) {
    for (uint32_t i = 0; i < dead_count; i++) {
        struct client *c = dead_list[i];
        if (c->user_length) forget_user(c);
        if (c->behind) behind_count--;
        clients[c->index] = clients[--client_count];
        clients[c->index]->index = c->index;
        close(c->fd);
        free(c->private);
        free(c->input);
        free(c);
    }
    dead_count = 0;
}

static void run(void) {
    static struct epoll_event events[EVENTS];
    for (;;) {
        int count = epoll_wait(epoll_fd, events, EVENTS, -1), accepting = 0;
        for (int i = 0; i < count; i++) {
            struct client *c = events[i].data.ptr;
            if (!c) { accepting = 1; continue; }
            if (!c->dead && events[i].events & ~EPOLLOUT) readable(c);
        }
        flush();
        for (int i = 0; i < count; i++) { /* after the flush: now the log ends where everyone's turn ends */
            struct client *c = events[i].data.ptr;
            if (c && c->behind && !c->dead && events[i].events & EPOLLOUT) send_all(c, c->position);
        }
        if (behind_count) cut_off_the_slowest();
        bury_the_dead();
        if (accepting) accept_all();
    }
}

/* ---- start ---- */

static void map_log(void) {
    int fd = memfd_create("log", 0);
    if (fd < 0 || ftruncate(fd, LOG_BYTES)) die("memfd");
    log_base = mmap(NULL, 2 * (size_t)LOG_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    for (int i = 0; i < 2; i++)
        if (mmap(log_base + (size_t)i * LOG_BYTES, LOG_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0) == MAP_FAILED)
            die("mmap");
    close(fd);
}

static void listen_on(int port, int send_buffer_bytes) {
    int one = 1;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    listen_fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    setsockopt(listen_fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (send_buffer_bytes) setsockopt(listen_fd, SOL_SOCKET, SO_SNDBUF, &send_buffer_bytes, sizeof send_buffer_bytes);
    if (bind(listen_fd, (struct sockaddr *)&address, size) || listen(listen_fd, 4096)) die("listen");
    getsockname(listen_fd, (struct sockaddr *)&address, &size);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL};
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, listen_fd, &event);
    printf("listening %d\n", ntohs(address.sin_port));
    fflush(stdout);
}

int main(int argc, char **argv) {
    int port = 0, send_buffer_bytes = 0, cpu = -1;
    for (int i = 1; i < argc; i += 2) {
        if (i + 1 == argc) { fprintf(stderr, "%s needs a value\n", argv[i]); return 2; }
        if (!strcmp(argv[i], "--mode")) {
            turn_mode = !strcmp(argv[i + 1], "turn");
            if (!turn_mode && strcmp(argv[i + 1], "message")) { fprintf(stderr, "--mode message|turn\n"); return 2; }
        } else if (!strcmp(argv[i], "--port")) port = atoi(argv[i + 1]);
        else if (!strcmp(argv[i], "--sndbuf")) send_buffer_bytes = atoi(argv[i + 1]);
        else if (!strcmp(argv[i], "--cpu")) cpu = atoi(argv[i + 1]);
        else { fprintf(stderr, "floor [--mode message|turn] [--port n] [--sndbuf bytes] [--cpu n]\n"); return 2; }
    }
    if (cpu >= 0) {
        cpu_set_t set;
        CPU_ZERO(&set);
        CPU_SET(cpu, &set);
        if (sched_setaffinity(0, sizeof set, &set)) die("--cpu");
    }
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    read_buffer = grow(NULL, FRAME_BYTES + READ_BYTES + 64);
    map_log();
    listen_on(port, send_buffer_bytes);
    run();
}
