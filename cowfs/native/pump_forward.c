/* Requests that somebody else answers: they go over a socket as messages of /dev/fuse, and a thread takes the answers
 * back to where the requests came from; or a thread of the pump keeps them. The unique number of a message is ours: it
 * says which forward it belongs to. */
#include "pump_internal.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#define NO_SLOT UINT32_MAX
#define GENERATION_SHIFT 32
#define ERROR_MAX 511
/* The answer must fit into a socket whose buffer nobody was allowed to raise. */
#define LISTING_LENGTH_MAX (64u << 10)

/* ---- slots ------------------------------------------------------------------------------------------------------- */

/* Numbers are even, as the kernel's: libfuse takes odd ones for interrupts. The generation keeps a late second answer
 * from reaching another request. */
static uint64_t token_of(const struct pump *pump, const struct pump_forward *forward)
{
    return (uint64_t)forward->generation << GENERATION_SHIFT | (uint64_t)(forward - pump->forwards + 1) << 1;
}

/* From then on the request may be answered, and its entry be on its way to the kernel, at any moment. */
static int slot_take(struct pump *pump, const struct pump_request *request, struct pump_entry *entry,
                     uint64_t started_ns, uint64_t *token)
{
    int error = 0;
    pthread_mutex_lock(&pump->forward_mutex);
    if (pump->forward_closed) {
        error = -EIO;
    } else if (pump->forward_free == NO_SLOT) {
        error = -ENOMEM;
    } else {
        struct pump_forward *forward = &pump->forwards[pump->forward_free];
        pump->forward_free = forward->next_free;
        forward->used = true;
        forward->generation++;
        forward->unique = request->header.unique;
        forward->opcode = request->header.opcode;
        forward->started_ns = started_ns;
        forward->entry = entry;
        *token = token_of(pump, forward);
    }
    pthread_mutex_unlock(&pump->forward_mutex);
    return error;
}

/* With the mutex held. */
static void slot_free(struct pump *pump, struct pump_forward *forward)
{
    forward->used = false;
    forward->next_free = pump->forward_free;
    pump->forward_free = (uint32_t)(forward - pump->forwards);
}

/* Copies the forward that an answer belongs to and frees its slot; false: there is none. */
static bool slot_claim(struct pump *pump, uint64_t token, struct pump_forward *out)
{
    uint64_t index = ((token & UINT32_MAX) >> 1) - 1;
    if (index >= PUMP_FORWARDS_MAX)
        return false;
    pthread_mutex_lock(&pump->forward_mutex);
    struct pump_forward *forward = &pump->forwards[index];
    bool found = forward->used && token_of(pump, forward) == token;
    if (found) {
        *out = *forward;
        slot_free(pump, forward);
    }
    pthread_mutex_unlock(&pump->forward_mutex);
    return found;
}

/* ---- out --------------------------------------------------------------------------------------------------------- */

/* Waits for room in the socket, but not beyond the pump's stop: who should read may have gone before. */
static int send_message(const struct pump *pump, const struct msghdr *message)
{
    struct pollfd ready[] = {{.fd = pump->options.forward, .events = POLLOUT},
                             {.fd = pump->stop_descriptor, .events = POLLIN}};
    while (sendmsg(pump->options.forward, message, MSG_NOSIGNAL | MSG_DONTWAIT) < 0) {
        if (errno == EPIPE || errno == ECONNRESET || atomic_load(&pump->stopping))
            return -EIO;
        if (errno != EAGAIN && errno != EINTR)
            return -errno;
        if (errno == EAGAIN && poll(ready, 2, -1) < 0 && errno != EINTR)
            return -errno;
    }
    return 0;
}

int pump_forward_request(struct pump *pump, const struct pump_request *request, struct pump_entry *entry,
                         uint64_t started_ns)
{
    static const struct fuse_getattr_in getattr;
    struct fuse_read_in listing;
    struct pump_forward claimed;
    struct fuse_in_header header = request->header;
    const void *argument = request->argument;
    size_t argument_length = pump_argument_length(header.opcode);
    if (header.opcode == PUMP_OPCODE_STATX) { /* libfuse does not know it: take_statx() */
        header.opcode = FUSE_GETATTR;
        argument = &getattr;
        argument_length = sizeof getattr;
    } else if (header.opcode == FUSE_READDIRPLUS) {
        memcpy(&listing, argument, sizeof listing);
        listing.size = listing.size < LISTING_LENGTH_MAX ? listing.size : LISTING_LENGTH_MAX;
        argument = &listing;
    }
    int error = slot_take(pump, request, entry, started_ns, &header.unique);
    if (error != 0)
        return error;
    header.len = (uint32_t)(sizeof header + argument_length + request->payload_length);
    header.total_extlen = 0;
    struct iovec parts[] = {
        {&header, sizeof header},
        {(void *)(uintptr_t)argument, argument_length},
        {(void *)(uintptr_t)request->payload, request->payload_length},
    };
    const struct msghdr message = {.msg_iov = parts, .msg_iovlen = 3};
    error = send_message(pump, &message);
    /* When the slot is gone, fail_all() has answered. */
    return error != 0 && slot_claim(pump, header.unique, &claimed) ? error : 0;
}

/* ---- back -------------------------------------------------------------------------------------------------------- */

static void answer_entry(struct pump_entry *entry, int error, const uint8_t *bytes, size_t length)
{
    struct pump_answer *answer = pump_entry_answer(entry);
    if (error == 0)
        (void)pump_succeed(answer, bytes, length);
    else
        (void)pump_fail(answer, error);
    pump_uring_answered(entry);
}

static void deliver(struct pump *pump, const struct pump_forward *forward, int error, const uint8_t *bytes,
                    size_t length)
{
    if (forward->entry != NULL)
        answer_entry(forward->entry, error, bytes, length);
    else
        (void)pump_device_answer(pump, forward->unique, error, bytes, length);
}

int pump_park(struct pump *pump, const struct pump_request *request, struct pump_entry *entry, uint64_t started_ns,
              uint64_t *token)
{
    return slot_take(pump, request, entry, started_ns, token);
}

void pump_unpark(struct pump *pump, uint64_t token, int error, const void *bytes, size_t length)
{
    struct pump_forward forward;
    /* When the slot is gone, fail_all() has answered. */
    if (slot_claim(pump, token, &forward))
        deliver(pump, &forward, error, bytes, length);
}

/* The answer to GETATTR as that to STATX. */
static int take_statx(const uint8_t *bytes, size_t length, struct pump_statx_out *out)
{
    struct fuse_attr_out in;
    if (length < sizeof in)
        return -EIO;
    memcpy(&in, bytes, sizeof in);
    *out = (struct pump_statx_out){.attr_valid = in.attr_valid, .attr_valid_nsec = in.attr_valid_nsec};
    pump_statx_fill(&in.attr, &out->stat);
    return 0;
}

static void take_answer(struct pump *pump, struct pump_counters *counters, const uint8_t *message, size_t length)
{
    struct fuse_out_header header;
    struct pump_forward forward;
    struct pump_statx_out statx;
    if (length < sizeof header)
        return;
    memcpy(&header, message, sizeof header);
    if (header.unique == 0 || !slot_claim(pump, header.unique, &forward))
        return; /* the answer to the synthetic INIT is among these */
    /* The kernel takes no other errors, and would let the request wait for ever. */
    if (header.len != length || header.error > 0 || header.error < -ERROR_MAX)
        header.error = -EIO;
    const uint8_t *bytes = message + sizeof header;
    length -= sizeof header;
    if (forward.opcode == PUMP_OPCODE_STATX && header.error == 0) {
        header.error = take_statx(bytes, length, &statx);
        bytes = (const uint8_t *)&statx;
        length = sizeof statx;
    }
    pump_count(counters, forward.opcode, true, pump_now_ns() - forward.started_ns);
    deliver(pump, &forward, header.error, bytes, length);
}

/* Nobody will answer any more: whoever waits gets an error, and so does who comes. */
static void fail_all(struct pump *pump)
{
    struct pump_forward forward;
    pthread_mutex_lock(&pump->forward_mutex);
    pump->forward_closed = true;
    pthread_mutex_unlock(&pump->forward_mutex);
    for (uint32_t index = 0; index < PUMP_FORWARDS_MAX; index++) {
        pthread_mutex_lock(&pump->forward_mutex);
        bool used = pump->forwards[index].used;
        uint64_t token = token_of(pump, &pump->forwards[index]);
        pthread_mutex_unlock(&pump->forward_mutex);
        if (used && slot_claim(pump, token, &forward))
            deliver(pump, &forward, -EIO, NULL, 0);
    }
}

static void *take_answers(void *argument)
{
    struct pump *pump = argument;
    struct pump_counters *counters = pump_counters_create(pump);
    uint8_t *message = malloc(PUMP_MESSAGE_LENGTH_MAX);
    struct pollfd ready[] = {{.fd = pump->options.forward, .events = POLLIN},
                             {.fd = pump->stop_descriptor, .events = POLLIN}};
    int error = counters == NULL || message == NULL ? -ENOMEM : 0;
    while (error == 0 && !atomic_load(&pump->stopping)) {
        if (poll(ready, 2, -1) < 0) {
            error = errno == EINTR ? 0 : -errno;
            continue;
        }
        if ((ready[0].revents & (POLLIN | POLLHUP | POLLERR)) == 0)
            continue;
        ssize_t length = recv(pump->options.forward, message, PUMP_MESSAGE_LENGTH_MAX, MSG_DONTWAIT);
        if (length > 0)
            take_answer(pump, counters, message, (size_t)length);
        else if (length == 0)
            break; /* closed at the other end */
        else if (errno != EAGAIN && errno != EINTR)
            error = -errno;
    }
    if (error != 0)
        pump_event(pump, PUMP_EVENT_FAILED, 0, 0, error);
    fail_all(pump);
    free(message);
    return NULL;
}

int pump_forward_start(struct pump *pump)
{
    pump->forwards = calloc(PUMP_FORWARDS_MAX, sizeof *pump->forwards);
    if (pump->forwards == NULL)
        return -ENOMEM;
    for (uint32_t index = 0; index < PUMP_FORWARDS_MAX; index++)
        pump->forwards[index].next_free = index + 1 < PUMP_FORWARDS_MAX ? index + 1 : NO_SLOT;
    pump->forward_free = 0;
    return pump_thread_start(pump, take_answers, pump);
}
