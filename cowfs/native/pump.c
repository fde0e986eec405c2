/* Life of the pump: the greeting with the kernel and with whoever is behind `forward`, threads, events, the end. */
#define _GNU_SOURCE /* pipe2 */
#include "pump_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#define BACKGROUND_MAX 256u
/* Protocol that we speak; what is newer in a kernel it leaves out for us. */
#define PROTOCOL_MINOR 45u
/* Below this libfuse splices nothing and takes every message by read(2). */
#define FORWARD_PROTOCOL_MINOR 13u
#define FORWARD_UNIQUE UINT64_C(2)

/* Flags wanted in any case. Not READDIRPLUS_AUTO: pyfuse3 knows no plain READDIR. Not DONT_MASK: the kernel applies the
 * umask. EXPLICIT_INVAL_DATA: nobody else writes. */
static const uint64_t flags_wanted =
    FUSE_ASYNC_READ | FUSE_ATOMIC_O_TRUNC | FUSE_EXPORT_SUPPORT | FUSE_BIG_WRITES | FUSE_DO_READDIRPLUS |
    FUSE_ASYNC_DIO | FUSE_PARALLEL_DIROPS | FUSE_HANDLE_KILLPRIV_V2 | FUSE_MAX_PAGES | FUSE_CACHE_SYMLINKS |
    FUSE_EXPLICIT_INVAL_DATA | FUSE_INIT_EXT;

/* ---- events ------------------------------------------------------------------------------------------------------ */

void pump_event(struct pump *pump, enum pump_event_kind kind, uint32_t opcode, uint64_t node, int error)
{
    struct pump_event event = {.kind = kind, .opcode = opcode, .node = node, .error = error};
    struct pollfd ready[] = {{.fd = pump->event_write, .events = POLLOUT},
                             {.fd = pump->stop_descriptor, .events = POLLIN}};
    while (write(pump->event_write, &event, sizeof event) < 0) {
        if (kind == PUMP_EVENT_ERROR || (errno != EAGAIN && errno != EINTR) || atomic_load(&pump->stopping)) {
            atomic_fetch_add_explicit(&pump->events_lost, 1, memory_order_relaxed);
            return;
        }
        (void)poll(ready, 2, -1);
    }
}

void pump_ended(struct pump *pump)
{
    if (!atomic_exchange(&pump->ended, true))
        pump_event(pump, PUMP_EVENT_ENDED, 0, 0, 0);
}

int pump_event_descriptor(const struct pump *pump)
{
    return pump->event_read;
}

bool pump_uses_uring(const struct pump *pump)
{
    return pump->uring != NULL;
}

uint64_t pump_open_files(const struct pump *pump)
{
    int64_t count = atomic_load(&pump->open_files);
    return count < 0 ? 0 : (uint64_t)count;
}

uint32_t pump_protocol_minor(const struct pump *pump)
{
    return pump->protocol_minor;
}

/* ---- greeting ---------------------------------------------------------------------------------------------------- */

static int read_init(const struct pump *pump, struct fuse_in_header *header, struct fuse_init_in *in)
{
    uint8_t message[FUSE_MIN_READ_BUFFER];
    ssize_t length;
    do
        length = read(pump->options.device, message, sizeof message);
    while (length < 0 && (errno == EINTR || errno == ENOENT));
    if (length < 0)
        return -errno;
    if ((size_t)length < sizeof *header + sizeof *in)
        return -EPROTO;
    memcpy(header, message, sizeof *header);
    memcpy(in, message + sizeof *header, sizeof *in);
    return header->opcode == FUSE_INIT && in->major == FUSE_KERNEL_VERSION ? 0 : -EPROTO;
}

static int answer_init(struct pump *pump, const struct fuse_in_header *header, const struct fuse_init_in *in,
                       uint64_t flags)
{
    struct fuse_init_out out = {
        .major = FUSE_KERNEL_VERSION,
        .minor = PROTOCOL_MINOR < in->minor ? PROTOCOL_MINOR : in->minor,
        .max_readahead = in->max_readahead,
        .flags = (uint32_t)flags,
        .flags2 = (uint32_t)(flags >> 32),
        .max_background = BACKGROUND_MAX,
        .congestion_threshold = BACKGROUND_MAX * 3 / 4,
        .max_write = PUMP_PAYLOAD_LENGTH_MAX,
        .time_gran = 1,
        .max_pages = PUMP_PAYLOAD_LENGTH_MAX / STORE_BLOCK_SIZE,
    };
    pump->protocol_minor = out.minor;
    return pump_device_answer(pump, header->unique, 0, &out, sizeof out);
}

/* What libfuse must hear before it serves anything. Its answer is ignored: nothing waits for that number. */
static int send_init(const struct pump *pump)
{
    struct {
        struct fuse_in_header header;
        struct fuse_init_in in;
    } message = {
        .header = {.len = sizeof message, .opcode = FUSE_INIT, .unique = FORWARD_UNIQUE},
        .in = {.major = FUSE_KERNEL_VERSION, .minor = FORWARD_PROTOCOL_MINOR, .flags = FUSE_DO_READDIRPLUS},
    };
    return send(pump->options.forward, &message, sizeof message, MSG_NOSIGNAL) < 0 ? -errno : 0;
}

static void try_uring(struct pump *pump, uint64_t offered, char reason[128])
{
    if ((offered & PUMP_FLAG_OVER_IO_URING) == 0) {
        snprintf(reason, 128, "the kernel does not offer it (parameter enable_uring of the module fuse)");
        return;
    }
    int error = pump_uring_create(pump, &pump->uring);
    if (error != 0)
        snprintf(reason, 128, "its rings cannot be made: %s", strerror(-error));
}

static int greet(struct pump *pump, char reason[128])
{
    struct fuse_in_header header;
    struct fuse_init_in in;
    int error = read_init(pump, &header, &in);
    if (error != 0)
        return error;
    uint64_t offered = in.flags | ((in.flags & FUSE_INIT_EXT) != 0 ? (uint64_t)in.flags2 << 32 : 0);
    uint64_t flags = flags_wanted | (pump->options.writeback ? FUSE_WRITEBACK_CACHE : 0);
    if (pump->options.uring)
        try_uring(pump, offered, reason);
    if (pump->uring != NULL)
        flags |= PUMP_FLAG_OVER_IO_URING;
    error = send_init(pump);
    return error != 0 ? error : answer_init(pump, &header, &in, flags & offered);
}

/* ---- life -------------------------------------------------------------------------------------------------------- */

int pump_thread_start(struct pump *pump, void *(*function)(void *), void *argument)
{
    pthread_t *grown = reallocarray(pump->threads, pump->thread_count + 1, sizeof *pump->threads);
    if (grown == NULL)
        return -ENOMEM;
    pump->threads = grown;
    /* Signals are for the process's own threads: one that comes while this one waits for the medium would only be
     * late. */
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int error = -pthread_create(&pump->threads[pump->thread_count], NULL, function, argument);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pump->thread_count += error == 0;
    return error;
}

static int make_descriptors(struct pump *pump)
{
    int events[2];
    pump->stop_descriptor = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (pump->stop_descriptor < 0 || pipe2(events, O_CLOEXEC | O_NONBLOCK) < 0)
        return -errno;
    pump->event_read = events[0];
    pump->event_write = events[1];
    return 0;
}

int pump_create(struct filesystem *filesystem, const struct pump_options *options, struct pump **out, char reason[128])
{
    struct pump *pump = calloc(1, sizeof *pump);
    reason[0] = 0;
    if (pump == NULL)
        return -ENOMEM;
    pump->filesystem = filesystem;
    pump->options = *options;
    pump->stop_descriptor = pump->event_read = pump->event_write = -1;
    pthread_mutex_init(&pump->forward_mutex, NULL);
    pthread_mutex_init(&pump->counters_mutex, NULL);
    pump->reserved_length = strnlen(options->reserved, sizeof pump->reserved - 1);
    memcpy(pump->reserved, options->reserved, pump->reserved_length);
    int error = options->threads == 0 || options->threads > PUMP_DEVICE_THREADS_MAX ? -EINVAL : make_descriptors(pump);
    if (error == 0 && options->writeback)
        error = options->mountpoint == NULL ? -EINVAL : pump_cache_create(pump, options->mountpoint);
    if (error == 0)
        error = greet(pump, reason);
    if (error == 0)
        *out = pump;
    else
        pump_destroy(pump);
    return error;
}

int pump_start(struct pump *pump)
{
    int flags = fcntl(pump->options.device, F_GETFL);
    if (flags < 0 || fcntl(pump->options.device, F_SETFL, flags | O_NONBLOCK) < 0)
        return -errno;
    int error = pump->cache != NULL ? pump_cache_start(pump) : 0;
    if (error == 0)
        error = pump_forward_start(pump);
    if (error == 0 && pump->options.awake)
        error = pump_awake_start(pump, &pump->awake);
    if (error == 0)
        error = pump_device_start(pump);
    if (error == 0 && pump->uring != NULL)
        error = pump_uring_start(pump->uring);
    return error;
}

void pump_stop(struct pump *pump)
{
    uint64_t one = 1;
    pump_cache_stop(pump);
    if (atomic_exchange(&pump->stopping, true))
        return;
    while (write(pump->stop_descriptor, &one, sizeof one) < 0 && errno == EINTR)
        ;
    if (pump->uring != NULL)
        pump_uring_stop(pump->uring);
    if (pump->awake != NULL)
        pump_awake_stop(pump->awake);
    for (size_t at = 0; at < pump->thread_count; at++)
        pthread_join(pump->threads[at], NULL);
    pump->thread_count = 0;
}

static void close_descriptor(int descriptor)
{
    if (descriptor >= 0)
        close(descriptor);
}

void pump_destroy(struct pump *pump)
{
    pump_cache_destroy(pump);
    if (pump->uring != NULL)
        pump_uring_destroy(pump->uring);
    if (pump->awake != NULL)
        pump_awake_destroy(pump->awake);
    for (size_t at = 0; at < pump->counters_count; at++)
        free(pump->counters[at]);
    free(pump->counters);
    free(pump->forwards);
    free(pump->threads);
    close_descriptor(pump->stop_descriptor);
    close_descriptor(pump->event_read);
    close_descriptor(pump->event_write);
    pthread_mutex_destroy(&pump->forward_mutex);
    pthread_mutex_destroy(&pump->counters_mutex);
    free(pump);
}
