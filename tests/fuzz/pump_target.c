/* One input: messages as /dev/fuse would give them, put through the pump's parsing and its handlers, on a small file
 * system of their own. The kernel sends nothing of this kind; what is held is that nothing in a message is believed. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>

/* For its handle(), which takes one message and has no need of threads. */
#include "cowfs/native/pump_device.c"
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/image.h"

#include <sys/socket.h>

#define MESSAGES_MAX 16u
#define MESSAGE_MAX 2048u

struct greeting {
    struct fuse_in_header header;
    struct fuse_init_in in;
};

static void need(const char *what, int result)
{
    if (result < 0)
        fuzz_fail(what, result);
}

/* Whoever is behind `forward`: answers every other request, and leaves the rest to the end of the pump. */
static void answer_forwarded(int end)
{
    static uint8_t bytes[PUMP_MESSAGE_LENGTH_MAX];
    struct fuse_in_header header;
    for (ssize_t length; (length = recv(end, bytes, sizeof bytes, MSG_DONTWAIT)) > 0;) {
        if (length < (ssize_t)sizeof header)
            fuzz_fail("a forwarded request is short", -EPROTO);
        memcpy(&header, bytes, sizeof header);
        if (header.len != length)
            fuzz_fail("a forwarded request has another length", -EPROTO);
        const struct fuse_out_header out = {.len = sizeof out, .error = -ENOENT, .unique = header.unique};
        if (header.unique % 4 == 0 && send(end, &out, sizeof out, MSG_NOSIGNAL) < 0 && errno != EPIPE)
            fuzz_fail("answer a forwarded request", -errno);
    }
}

/* A pump that was greeted and of whose threads only that of forwarded requests runs. */
static struct pump *make_pump(struct filesystem *filesystem, int forward)
{
    const struct greeting greeting = {
        .header = {.len = sizeof greeting, .opcode = FUSE_INIT, .unique = 1},
        .in = {.major = FUSE_KERNEL_VERSION, .minor = 36, .flags = UINT32_MAX & ~(uint32_t)FUSE_INIT_EXT},
    };
    char reason[128];
    struct pump *pump;
    int ends[2];
    need("socketpair", socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends));
    if (send(ends[1], &greeting, sizeof greeting, 0) != sizeof greeting)
        fuzz_fail("greeting", -errno);
    const struct pump_options options = {
        .device = ends[0],
        .forward = forward,
        .honours_setuid = true,
        .threads = 1,
        .reserved = ".cowfs",
    };
    need("pump", pump_create(filesystem, &options, &pump, reason));
    close(ends[1]);
    int nowhere = open("/dev/null", O_WRONLY | O_CLOEXEC); /* answers */
    need("/dev/null", nowhere);
    need("dup2", dup2(nowhere, ends[0]));
    close(nowhere);
    need("forwarding", pump_forward_start(pump));
    return pump;
}

static void send_all(struct pump *pump, const uint8_t *bytes, size_t length, int theirs)
{
    struct device_thread thread = {.pump = pump, .ready = -1};
    thread.counters = pump_counters_create(pump);
    thread.answer = malloc(PUMP_PAYLOAD_LENGTH_MAX);
    if (thread.counters == NULL || thread.answer == NULL)
        fuzz_fail("memory", -ENOMEM);
    for (unsigned count = 0; count < MESSAGES_MAX && length > 2; count++) {
        size_t message = load16(bytes);
        bytes += 2;
        length -= 2;
        message = message < length ? message : length;
        /* Exactly as long as it is, so that reading behind it is seen. */
        thread.message = malloc(message ? message : 1);
        if (thread.message == NULL)
            fuzz_fail("memory", -ENOMEM);
        memcpy(thread.message, bytes, message);
        int result = handle(&thread, message);
        if (result != 0 && result != -EPROTO)
            fuzz_fail("a message ends the pump", result);
        free(thread.message);
        bytes += message;
        length -= message;
        answer_forwarded(theirs);
    }
    free(thread.answer);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t length)
{
    static struct image image;
    int ends[2];
    const struct store_options options = {
        .cache_bytes_max = 1, .dirty_bytes_max = 1, .buffer_bytes_max = 1, .no_background = true};
    struct store_failure failure;
    struct store_volume volume;
    struct filesystem *filesystem;
    struct store *store;
    need("socketpair", socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends));
    image_begin(&image, seed_get(1));
    need("open", store_open(&image.storage, &options, &store, &failure));
    need("volume", store_volume_find(store, "main", &volume));
    need("file system", filesystem_open(store, volume.id, false, &filesystem));
    struct pump *pump = make_pump(filesystem, ends[0]);
    send_all(pump, bytes, length, ends[1]);
    pump_stop(pump);
    close(pump->options.device);
    close(ends[0]);
    close(ends[1]);
    pump_destroy(pump);
    need("release", filesystem_release_all(filesystem));
    filesystem_close(filesystem);
    store_abandon(store);
    image_end(&image);
    return 0;
}

/* ---- messages like those of the kernel --------------------------------------------------------------------------- */

static size_t put_name(uint8_t *to, uint64_t *random)
{
    static const char *const names[] = {"folder", "inline", "extents", "deep", "new", ".cowfs", ".", "..", "",
                                        "user.long", "security.capability", "a/b", "second name", "link"};
    const char *name = names[fuzz_draw(random, sizeof names / sizeof *names)];
    size_t length = strlen(name);
    memcpy(to, name, length);
    if (fuzz_draw(random, 20) == 0) {
        length = fuzz_draw(random, 400);
        memset(to, 'n', length);
    }
    to[length] = 0;
    return length + (fuzz_draw(random, 12) != 0); /* sometimes nothing ends it */
}

static size_t make_message(uint8_t *out, uint64_t *random)
{
    static const uint64_t values[] = {0, 1, 2, 3, 4, 9, 16, 64, 255, 4095, 4096, 8192, 65536, 1 << 20, INT32_MAX,
                                      UINT32_MAX, INT64_MAX, UINT64_MAX, UINT64_C(1) << 60, UINT64_C(1) << 63};
    struct fuse_in_header header = {.unique = 2 * fuzz_draw(random, 1000), .uid = 1000, .gid = 1000};
    header.opcode = (uint32_t)fuzz_draw(random, PUMP_OPCODE_COUNT + 2);
    header.nodeid = 1;
    if (fuzz_draw(random, 3))
        header.nodeid = fuzz_draw(random, 3) << FILESYSTEM_VIEW_SHIFT | fuzz_draw(random, 20);
    if (fuzz_draw(random, 16) == 0)
        header.nodeid = values[fuzz_draw(random, sizeof values / sizeof *values)];
    size_t at = sizeof header, argument = pump_argument_length(header.opcode);
    for (size_t word = 0; word < argument; word += 4) {
        uint64_t value = fuzz_draw(random, 2) ? 0 : values[fuzz_draw(random, sizeof values / sizeof *values)];
        memcpy(out + at + word, &value, argument - word < 4 ? argument - word : 4);
    }
    at += argument;
    for (uint64_t names = fuzz_draw(random, 3); names > 0; names--)
        at += put_name(out + at, random);
    for (uint64_t rest = fuzz_draw(random, 3) ? 0 : fuzz_draw(random, 600); rest > 0; rest--)
        out[at++] = (uint8_t)fuzz_draw(random, 256);
    if (fuzz_draw(random, 8) == 0)
        at -= fuzz_draw(random, at);
    header.len = (uint32_t)(fuzz_draw(random, 50) ? at : fuzz_draw(random, 5000));
    memcpy(out, &header, at < sizeof header ? at : sizeof header);
    return at;
}

size_t LLVMFuzzerCustomMutator(uint8_t *bytes, size_t length, size_t length_max, unsigned number)
{
    uint64_t random = (uint64_t)number << 16 | 0x9e37;
    uint8_t message[MESSAGE_MAX];
    if (length < 32 || fuzz_draw(&random, 4)) {
        size_t made = make_message(message, &random);
        if (length + 2 + made > length_max)
            length = 0;
        if (2 + made > length_max)
            return 0;
        save16(bytes + length, (uint16_t)made);
        memcpy(bytes + length + 2, message, made);
        return length + 2 + made;
    }
    size_t at = fuzz_draw(&random, length - 8);
    (void)LLVMFuzzerMutate(bytes + at, 8, 8);
    return length;
}
