/* A load generator that checks every answer.
 *
 * One thread, one epoll, any number of keep-alive connections over HTTP or WebSocket. Each connection steps streams of
 * its own, one after the other, so a stream has at most one timestep in flight and its `seq` is always the next one. The
 * command line gives the form of a request and the position of the prediction in an answer: the same client measures
 * every server.
 *
 * A request is made of a template with `{stream}`, `{seq}`, `{start}` and `{x}`. Stream s of class k = s mod K gets at
 * step t the row (31 k + 17 t) mod R of the inputs; the expected prediction is the float `expected[k][t]`.
 *
 * With `--frame FILE` a message is one msgpack bulk frame instead: the `seq` and inputs of its streams are patched into
 * the bytes of FILE at the offsets given before them.
 *
 * Prints "measuring" when the warm-up is over, then one line of JSON.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#define BUFFER (1 << 22)
#define BUCKETS (64 * 32)
#define TICK UINT32_MAX

typedef struct {
    int fd;
    int at;             /* index of the stream that is stepped now */
    int stream;         /* with --shuffle: the stream in flight */
    int waiting;        /* answers not received yet */
    int64_t began;      /* when the timestep was due, ns */
    char *in;           /* received and not parsed yet */
    size_t have;
    char *frame;        /* this connection's msgpack frame, or NULL */
    uint32_t frame_step; /* timesteps sent for every stream of the frame */
} Connection;

/* ---------------------------------------------------------------- options */

static int port = 8000, connections = 256, streams = 256, classes = 256, steps = 0, is_websocket = 0, window = 1, shuffle = 0;
static double seconds = 5, warmup = 1, rate = 0;
static const char *find = NULL, *path = "/", *subprotocol = "stepwell.json", *auth = NULL;
static char *template, **rows;
static int row_count;
static float *expected; /* [classes][steps] */
static double atol_ = 1e-5, rtol_ = 1e-4;

/* frames */
static char *frame_bytes;
static size_t frame_size;
static uint32_t frame_streams, frame_length, frame_width, *seq_at, x_at; /* offsets into the frame */
static float *row_values;                                                /* [row_count][frame_width] */

/* ---------------------------------------------------------------- results */

static uint64_t done_steps, answers, errors, wrong, exhausted, histogram[BUCKETS];
static double worst = 0;
static uint32_t *stream_step; /* timesteps sent, per stream */
static int *resting, resting_count; /* with --shuffle: streams without a request in flight */
static uint64_t seen_answers;
static char first_error[400];
static int measuring;

static void die(const char *what) {
    fprintf(stderr, "load: %s: %s\n", what, strerror(errno));
    exit(1);
}

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static char *read_file(const char *name, size_t *size) {
    FILE *file = fopen(name, "rb");
    if (!file) die(name);
    fseek(file, 0, SEEK_END);
    *size = ftell(file);
    rewind(file);
    char *bytes = malloc(*size + 1);
    if (fread(bytes, 1, *size, file) != *size) die(name);
    bytes[*size] = 0;
    fclose(file);
    return bytes;
}

/* Buckets 1/32 of a power of two wide, in microseconds from 1/1024 up. */
static int bucket_of(int64_t ns) {
    double us = ns / 1000.0 * 1024;
    if (us < 1) return 0;
    int exponent;
    double part = frexp(us, &exponent); /* 0.5 .. 1 */
    int bucket = exponent * 32 + (int)((part - 0.5) * 64);
    return bucket < BUCKETS ? bucket : BUCKETS - 1;
}

static double bucket_us(int bucket) { return ldexp(0.5 + (bucket % 32 + 1) / 64.0, bucket / 32) / 1024; }

static double percentile(double share) {
    uint64_t total = 0, seen = 0;
    for (int i = 0; i < BUCKETS; i++) total += histogram[i];
    for (int i = 0; i < BUCKETS; i++)
        if ((seen += histogram[i]) >= share * total && seen) return bucket_us(i);
    return 0;
}

static void note_error(const char *what, const char *text, size_t size) {
    errors++;
    if (!first_error[0]) snprintf(first_error, sizeof first_error, "%s: %.*s", what, (int)(size < 300 ? size : 300), text);
}

static void judge(double found, int class, uint32_t step) {
    double want = expected[(size_t)class * steps + step];
    double off = fabs(found - want);
    if (!(off <= atol_ + rtol_ * fabs(want))) wrong++;
    if (!(off <= worst)) worst = off;
}

/* ---------------------------------------------------------------- sending */

static void send_all(Connection *c, const char *bytes, size_t size) {
    while (size) {
        ssize_t sent = write(c->fd, bytes, size);
        if (sent < 0) {
            if (errno == EAGAIN || errno == EINTR) continue; /* frames are small compared with the socket's buffer */
            die("write");
        }
        bytes += sent;
        size -= sent;
    }
}

static size_t websocket_head(char *out, size_t size, int is_binary) {
    size_t at = 0;
    out[at++] = (char)(0x80 | (is_binary ? 2 : 1));
    if (size < 126) {
        out[at++] = (char)(0x80 | size);
    } else if (size < 65536) {
        out[at++] = (char)(0x80 | 126);
        out[at++] = (char)(size >> 8);
        out[at++] = (char)size;
    } else {
        out[at++] = (char)(0x80 | 127);
        for (int i = 7; i >= 0; i--) out[at++] = (char)((uint64_t)size >> (8 * i));
    }
    memset(out + at, 0, 4); /* a mask of zeros: valid, and nothing to compute */
    return at + 4;
}

static size_t fill(char *out, const char *text, int stream, uint32_t step) {
    char *begin = out;
    int class = stream % classes;
    while (*text) {
        if (*text != '{') {
            *out++ = *text++;
        } else if (!strncmp(text, "{x}", 3)) {
            const char *row = rows[(31 * (size_t)class + 17 * (size_t)step) % row_count];
            out = stpcpy(out, row), text += 3;
        } else if (!strncmp(text, "{seq}", 5)) {
            out += sprintf(out, "%u", step + 1), text += 5;
        } else if (!strncmp(text, "{stream}", 8)) {
            out += sprintf(out, "%d", stream), text += 8;
        } else if (!strncmp(text, "{start}", 7)) {
            out = stpcpy(out, step ? "false" : "true"), text += 7;
        } else {
            *out++ = *text++;
        }
    }
    return out - begin;
}

/* A connection steps its own streams, or with --shuffle any stream without a request in flight: then each request of a
 * stream goes over another connection, and so possibly to another worker. */
static int stream_of(const Connection *c, int index, int at) { return shuffle ? c->stream : index + at * connections; }

static int pick(void) {
    static uint64_t random = 88172645463325252ull;
    random ^= random << 13, random ^= random >> 7, random ^= random << 17;
    int at = random % resting_count, stream = resting[at];
    resting[at] = resting[--resting_count];
    return stream;
}

/* Send the connection's next timestep; false when a stream has run out of expected answers. */
static int ask(Connection *c, int index, int64_t due) {
    static char out[1 << 16], body[1 << 16];
    c->began = due;
    if (frame_bytes) {
        if (c->frame_step + frame_length > (uint32_t)steps) return 0;
        for (uint32_t i = 0; i < frame_streams; i++) {
            uint32_t seq = htonl(c->frame_step + 1);
            memcpy(c->frame + seq_at[i], &seq, 4);
            int class = (index * frame_streams + i) % classes;
            float *x = (float *)(c->frame + x_at) + (size_t)i * frame_length * frame_width;
            for (uint32_t t = 0; t < frame_length; t++)
                memcpy(x + t * frame_width,
                       row_values + (31 * (size_t)class + 17 * (size_t)(c->frame_step + t)) % row_count * frame_width,
                       frame_width * 4);
        }
        char head[16];
        send_all(c, head, websocket_head(head, frame_size, 1));
        send_all(c, c->frame, frame_size);
        c->waiting = 1;
        return 1;
    }
    size_t at = 0;
    if (shuffle) c->stream = pick();
    for (int i = 0; i < window; i++) {
        int stream = stream_of(c, index, c->at + i);
        uint32_t step = stream_step[stream];
        if (step >= (uint32_t)steps) return 0;
        char *split = strstr(template, "\r\n\r\n");
        if (is_websocket) {
            size_t size = fill(body, template, stream, step);
            at += websocket_head(out + at, size, 0);
            memcpy(out + at, body, size), at += size;
        } else { /* head with the body's length, then the body */
            size_t size = fill(body, split + 4, stream, step);
            at += fill(out + at, template, stream, step) - size;
            at -= 2;
            at += sprintf(out + at, "Content-Length: %zu\r\n\r\n", size);
            memcpy(out + at, body, size), at += size;
        }
    }
    send_all(c, out, at);
    c->waiting = window;
    return 1;
}

/* ---------------------------------------------------------------- receiving */

static const char *find_bytes(const char *in, size_t size, const char *what, size_t length) {
    return memmem(in, size, what, length);
}

static void take_frame(Connection *c, int index, const char *payload, size_t size) {
    const char *end = payload + size, *y = find_bytes(payload, size, "\xa1y", 2);
    const char *b = y ? find_bytes(y, end - y, "\xa1" "b", 2) : NULL;
    if (!b) {
        note_error("frame", payload, size);
        c->frame_step += frame_length;
        return;
    }
    b += 2;
    int width = (uint8_t)*b == 0xc4 ? 1 : (uint8_t)*b == 0xc5 ? 2 : 4;
    b += 1 + width;
    uint32_t count = frame_streams * frame_length;
    if (b + count * 4 > end) {
        note_error("short frame", payload, size);
    } else {
        for (uint32_t i = 0; i < frame_streams; i++)
            for (uint32_t t = 0; t < frame_length; t++) {
                float found;
                memcpy(&found, b + (i * frame_length + t) * 4, 4);
                judge(found, (index * frame_streams + i) % classes, c->frame_step + t);
            }
        if (measuring) done_steps += count;
    }
    c->frame_step += frame_length;
}

static void take_body(Connection *c, int index, int status, const char *body, size_t size) {
    if (frame_bytes) {
        take_frame(c, index, body, size);
        return;
    }
    int stream = stream_of(c, index, c->at + window - c->waiting);
    if (window > 1) { /* order is kept per stream only, so the answer names its stream */
        const char *name = find_bytes(body, size, "\"stream\":\"", 10), *dash = NULL;
        for (const char *p = name ? name + 10 : body + size; p < body + size && *p != '"'; p++)
            if (*p == '-') dash = p;
        if (dash) stream = atoi(dash + 1);
    }
    uint32_t step = stream_step[stream]++;
    if (status != 200) {
        note_error("status", body, size);
        return;
    }
    if (find) {
        const char *at = find_bytes(body, size, find, strlen(find));
        if (!at) {
            note_error("no prediction", body, size);
            return;
        }
        judge(strtod(at + strlen(find), NULL), stream % classes, step);
    }
    if (measuring) done_steps++;
}

/* Parse one answer at the front of the buffer; returns its bytes, 0 when it is incomplete. */
static size_t take_one(Connection *c, int index) {
    if (is_websocket) {
        if (c->have < 2) return 0;
        uint8_t *in = (uint8_t *)c->in;
        size_t size = in[1] & 127, at = 2;
        if (size == 126) {
            if (c->have < 4) return 0;
            size = in[2] << 8 | in[3], at = 4;
        } else if (size == 127) {
            if (c->have < 10) return 0;
            size = 0;
            for (int i = 2; i < 10; i++) size = size << 8 | in[i];
            at = 10;
        }
        if (c->have < at + size) return 0;
        if ((in[0] & 15) == 8) {
            fprintf(stderr, "load: the server closed: %.*s\n", (int)size - 2, c->in + at + 2);
            exit(1);
        }
        if ((in[0] & 15) <= 2) take_body(c, index, 200, c->in + at, size), c->waiting--;
        return at + size;
    }
    char *end = memmem(c->in, c->have, "\r\n\r\n", 4);
    if (!end) return 0;
    size_t head = end + 4 - c->in, size = 0;
    *end = 0;
    char *length = strcasestr(c->in, "\r\ncontent-length:");
    if (length) size = strtoul(length + 17, NULL, 10);
    int status = atoi(c->in + 9);
    *end = '\r';
    if (c->have < head + size) return 0;
    take_body(c, index, status, c->in + head, size);
    c->waiting--;
    return head + size;
}

/* Read from the socket; true when all answers of the connection have arrived. */
static int receive(Connection *c, int index) {
    ssize_t got = read(c->fd, c->in + c->have, BUFFER - c->have - 1);
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) return 0;
    if (got <= 0) {
        fprintf(stderr, "load: a connection was closed%s%s\n", first_error[0] ? "; first error: " : "", first_error);
        exit(1);
    }
    c->have += got;
    c->in[c->have] = 0;
    size_t used = 0, one;
    char *begin = c->in;
    while (c->waiting && (one = take_one(c, index))) used += one, c->in += one, c->have -= one;
    c->in = begin;
    if (used && c->have) memmove(c->in, c->in + used, c->have);
    if (c->waiting) return 0;
    if (measuring) {
        answers++;
        histogram[bucket_of(now_ns() - c->began)]++;
    }
    seen_answers += window;
    if (shuffle) {
        resting[resting_count++] = c->stream;
    } else {
        c->at += window;
        if (stream_of(c, index, c->at + window - 1) >= streams) c->at = 0;
    }
    return 1;
}

/* ---------------------------------------------------------------- running */

static void open_connection(Connection *c) {
    struct sockaddr_in where = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    c->fd = socket(AF_INET, SOCK_STREAM, 0);
    if (c->fd < 0 || connect(c->fd, (struct sockaddr *)&where, sizeof where)) die("connect");
    int one = 1;
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    c->in = malloc(BUFFER);
    if (is_websocket) {
        char text[2000];
        int size = snprintf(text, sizeof text,
                            "GET %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                            "Sec-WebSocket-Key: c3RlcHdlbGxzdGVwd2VsbA==\r\nSec-WebSocket-Version: 13\r\n"
                            "Sec-WebSocket-Protocol: %s\r\n%s%s%s\r\n",
                            path, port, subprotocol, auth ? "Authorization: Bearer " : "", auth ? auth : "", auth ? "\r\n" : "");
        send_all(c, text, size);
        while (!memmem(c->in, c->have, "\r\n\r\n", 4)) {
            ssize_t got = read(c->fd, c->in + c->have, BUFFER - c->have);
            if (got <= 0) die("handshake");
            c->have += got;
        }
        if (strncmp(c->in, "HTTP/1.1 101", 12)) {
            fprintf(stderr, "load: no WebSocket: %.*s\n", (int)c->have, c->in);
            exit(1);
        }
        c->have = 0;
    }
    fcntl(c->fd, F_SETFL, O_NONBLOCK);
}

static void read_arguments(int argc, char **argv) {
    for (int i = 1; i + 1 < argc; i += 2) {
        const char *name = argv[i], *value = argv[i + 1];
        size_t size;
        if (!strcmp(name, "--port")) port = atoi(value);
        else if (!strcmp(name, "--connections")) connections = atoi(value);
        else if (!strcmp(name, "--streams")) streams = atoi(value);
        else if (!strcmp(name, "--classes")) classes = atoi(value);
        else if (!strcmp(name, "--steps")) steps = atoi(value);
        else if (!strcmp(name, "--seconds")) seconds = atof(value);
        else if (!strcmp(name, "--warmup")) warmup = atof(value);
        else if (!strcmp(name, "--rate")) rate = atof(value);
        else if (!strcmp(name, "--find")) find = value;
        else if (!strcmp(name, "--window")) window = atoi(value);
        else if (!strcmp(name, "--shuffle")) shuffle = atoi(value);
        else if (!strcmp(name, "--auth")) auth = value;
        else if (!strcmp(name, "--websocket")) is_websocket = 1, path = value;
        else if (!strcmp(name, "--subprotocol")) subprotocol = value;
        else if (!strcmp(name, "--template")) template = read_file(value, &size);
        else if (!strcmp(name, "--expected")) expected = (float *)read_file(value, &size);
        else if (!strcmp(name, "--rows")) { /* one text per line */
            char *text = read_file(value, &size);
            rows = malloc(sizeof(char *) * (size / 2 + 1));
            for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n")) rows[row_count++] = line;
        } else if (!strcmp(name, "--row-values")) {
            row_values = (float *)read_file(value, &size);
        } else if (!strcmp(name, "--frame")) { /* counts and offsets as uint32, then the bytes; see load.py */
            uint32_t *head = (uint32_t *)read_file(value, &size);
            frame_streams = head[0], frame_length = head[1], frame_width = head[2], x_at = head[3];
            seq_at = head + 4;
            frame_bytes = (char *)(seq_at + frame_streams);
            frame_size = size - (4 + frame_streams) * 4;
        } else {
            fprintf(stderr, "load: no such option: %s\n", name);
            exit(2);
        }
    }
}

int main(int argc, char **argv) {
    read_arguments(argc, argv);
    if (streams < connections * window) streams = connections * window;
    stream_step = calloc(streams + connections, sizeof *stream_step);
    resting = malloc(sizeof *resting * streams);
    for (int i = 0; i < streams; i++) resting[resting_count++] = i;
    Connection *all = calloc(connections, sizeof *all);
    int poll = epoll_create1(0), *idle = malloc(sizeof(int) * connections), idle_count = 0;
    for (int i = 0; i < connections; i++) {
        open_connection(&all[i]);
        if (frame_bytes) {
            all[i].frame = malloc(frame_size);
            memcpy(all[i].frame, frame_bytes, frame_size);
            char name[16]; /* each connection has its own streams: nnnn of the names */
            snprintf(name, sizeof name, "c%04d", i);
            for (char *p = all[i].frame; (p = memmem(p, all[i].frame + frame_size - p, "c0000", 5)); p += 5) memcpy(p, name, 5);
        }
        struct epoll_event event = {.events = EPOLLIN, .data.u32 = i};
        epoll_ctl(poll, EPOLL_CTL_ADD, all[i].fd, &event);
        idle[idle_count++] = i;
    }
    int64_t begin = now_ns(), measured_from = begin + (int64_t)(warmup * 1e9), end = INT64_MAX;
    int64_t pause = rate > 0 ? (int64_t)(1e9 / rate) : 0, due = begin;
    int timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    if (pause) { /* wake up regularly for requests that are due */
        struct itimerspec often = {.it_interval = {0, 200000}, .it_value = {0, 200000}};
        timerfd_settime(timer, 0, &often, NULL);
        struct epoll_event event = {.events = EPOLLIN, .data.u32 = TICK};
        epoll_ctl(poll, EPOLL_CTL_ADD, timer, &event);
    }
    static struct epoll_event events[1024];
    int64_t now = now_ns();
    while (now < end) {
        while (idle_count && (!pause || due <= now)) {
            int index = idle[--idle_count];
            if (!ask(&all[index], index, pause ? due : now)) {
                exhausted++;
                end = now; /* no expected answers beyond this timestep */
                break;
            }
            if (pause) due += pause;
        }
        int count = epoll_wait(poll, events, 1024, 100);
        now = now_ns();
        if (!measuring && now >= measured_from && (frame_bytes || seen_answers >= (uint64_t)streams)) {
            measuring = 1; /* every stream exists */
            measured_from = now;
            end = now + (int64_t)(seconds * 1e9);
            puts("measuring");
            fflush(stdout);
        }
        for (int i = 0; i < count; i++) {
            uint32_t index = events[i].data.u32;
            uint64_t ticks;
            if (index == TICK)
                while (read(timer, &ticks, sizeof ticks) > 0) continue;
            else if (receive(&all[index], index)) idle[idle_count++] = index;
        }
    }
    double took = (now - measured_from) / 1e9;
    for (char *p = first_error; *p; p++)
        if (*p == '"' || *p == '\\' || (uint8_t)*p < 32) *p = '\'';
    printf("{\"steps\": %lu, \"seconds\": %.4f, \"answers\": %lu, \"errors\": %lu, \"wrong\": %lu, \"worst\": %.3g, "
           "\"p50_us\": %.1f, \"p90_us\": %.1f, \"p99_us\": %.1f, \"max_us\": %.1f, \"exhausted\": %lu, \"first_error\": \"%s\"}\n",
           done_steps, took, answers, errors, wrong, worst, percentile(0.5), percentile(0.9), percentile(0.99), percentile(1.0),
           exhausted, first_error);
    return 0;
}
