/* What the pump takes for the kernel, in the same process: /dev/fuse is one end of a socket, and what a ring submits to
 * it becomes a read of an eventfd of the entry's, which completes when a request has been put there. And whoever is
 * behind `forward`. One thread asks, and waits for each answer; that none comes twice, or to nobody, is looked after.
 *
 * For drivers linked with --wrap of what failing_resources.h and this file define. */
#ifndef TESTS_PRETENDED_KERNEL_H
#define TESTS_PRETENDED_KERNEL_H

#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <poll.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include "cowfs/native/pump.h"
#include "cowfs/native/pump_protocol.h"
#include "failing_resources.h"

#define KERNEL_QUEUES 2u
#define KERNEL_SLOTS_MAX 64u
/* Without an answer for that long it hangs. */
#define KERNEL_PATIENCE_MS 60000
/* A message has to fit into the buffer of a socket that nobody was allowed to raise. */
#define KERNEL_LENGTH_MAX (128u << 10)
#define KERNEL_VIRTUAL_NODE ((UINT64_C(1) << 63) - (UINT64_C(1) << 40) + 1)

static void fail(const char *what, int result);

/* An entry of a ring. */
struct slot {
    uint64_t user_data;
    struct iovec parts[2];
    uint16_t queue;
    int wake; /* an eventfd */
    uint64_t woken, unique, commit_id;
    bool is_ready, is_under_way;
};

static struct kernel {
    int device, device_end; /* the pump's and ours */
    int forward, forward_end;
    int events;   /* of the pump */
    bool uring;   /* requests go there */
    bool is_deaf; /* nobody answers what is forwarded */
    bool has_ended;
    uint64_t unique; /* of the last request */
    uint64_t forwarded;
    uint32_t errors_told; /* PUMP_EVENT_ERROR */

    pthread_mutex_t mutex; /* guards what follows */
    struct slot slots[KERNEL_SLOTS_MAX];
    uint32_t slot_count, slot_next;
    struct slot *answered;
    uint64_t unanswered; /* a request that nobody waits for: it may have an answer */
    int news; /* an eventfd: slots have changed */
} kernel = {.mutex = PTHREAD_MUTEX_INITIALIZER, .news = -1};

/* The last answer. */
static uint8_t kernel_message[PUMP_PAYLOAD_LENGTH_MAX + 4096];
static const uint8_t *kernel_answer;
static size_t kernel_answer_length;

/* ---- rings ------------------------------------------------------------------------------------------------------- */

int __real_io_uring_submit(struct io_uring *ring);
int __real_io_uring_submit_and_wait(struct io_uring *ring, unsigned count);
int __wrap_io_uring_submit(struct io_uring *ring);
int __wrap_io_uring_submit_and_wait(struct io_uring *ring, unsigned count);

static struct slot *slot_of(uint64_t user_data)
{
    for (uint32_t at = 0; at < kernel.slot_count; at++)
        if (kernel.slots[at].user_data == user_data)
            return &kernel.slots[at];
    return NULL;
}

static struct slot *slot_register(const struct io_uring_sqe *sqe, uint16_t queue)
{
    if (kernel.slot_count == KERNEL_SLOTS_MAX)
        fail("entries of rings", -ENOSPC);
    struct slot *slot = &kernel.slots[kernel.slot_count++];
    *slot = (struct slot){.user_data = sqe->user_data, .queue = queue, .wake = __real_eventfd(0, EFD_CLOEXEC)};
    if (slot->wake < 0 || sqe->len != 2)
        fail("register", -EINVAL);
    memcpy(slot->parts, (const void *)(uintptr_t)sqe->addr, sizeof slot->parts);
    return slot;
}

static void slot_commit(struct slot *slot, uint64_t commit_id)
{
    const struct pump_uring_header *header = slot->parts[0].iov_base;
    struct fuse_out_header out;
    memcpy(&out, header->in_out, sizeof out);
    if (!slot->is_under_way || out.unique != slot->unique || commit_id != slot->commit_id)
        fail("an entry was answered that was not asked", -EPROTO);
    if (out.error == 0 && header->state.payload_length > slot->parts[1].iov_len)
        fail("an answer is longer than its memory", -EPROTO);
    slot->is_under_way = false;
    if (slot->unique == kernel.unanswered)
        kernel.unanswered = 0;
    else
        kernel.answered = slot;
}

static void take_command(struct io_uring_sqe *sqe)
{
    struct pump_uring_submission submission;
    uint64_t one = 1;
    memcpy(&submission, sqe->cmd, sizeof submission);
    pthread_mutex_lock(&kernel.mutex);
    bool is_new = sqe->cmd_op == PUMP_URING_REGISTER;
    struct slot *slot = is_new ? slot_register(sqe, submission.queue) : slot_of(sqe->user_data);
    if (slot == NULL)
        fail("an unknown entry", -EPROTO);
    if (!is_new)
        slot_commit(slot, submission.commit_id);
    slot->is_ready = true;
    uint64_t user_data = sqe->user_data;
    memset(sqe, 0, 2 * sizeof *sqe);
    sqe->opcode = IORING_OP_READ;
    sqe->fd = slot->wake;
    sqe->addr = (uintptr_t)&slot->woken;
    sqe->len = sizeof slot->woken;
    sqe->user_data = user_data;
    if (write(kernel.news, &one, sizeof one) < 0)
        fail("news", -errno);
    pthread_mutex_unlock(&kernel.mutex);
}

static void take_commands(struct io_uring *ring)
{
    for (unsigned at = ring->sq.sqe_head; at != ring->sq.sqe_tail; at++) {
        struct io_uring_sqe *sqe = &ring->sq.sqes[(size_t)(at & ring->sq.ring_mask) << 1]; /* SQE128 */
        if (sqe->opcode == IORING_OP_URING_CMD)
            take_command(sqe);
    }
}

int __wrap_io_uring_submit(struct io_uring *ring)
{
    take_commands(ring);
    return __real_io_uring_submit(ring);
}

int __wrap_io_uring_submit_and_wait(struct io_uring *ring, unsigned count)
{
    take_commands(ring);
    return __real_io_uring_submit_and_wait(ring, count);
}

/* An entry of the first queue that waits for a request; each has its turn. */
static struct slot *slot_ready(void)
{
    struct slot *found = NULL;
    pthread_mutex_lock(&kernel.mutex);
    for (uint32_t count = 0; found == NULL && count < kernel.slot_count; count++) {
        struct slot *slot = &kernel.slots[kernel.slot_next++ % kernel.slot_count];
        found = slot->queue == 0 && slot->is_ready ? slot : NULL;
    }
    pthread_mutex_unlock(&kernel.mutex);
    return found;
}

static bool all_queues_ready(void)
{
    uint32_t queues = 0;
    pthread_mutex_lock(&kernel.mutex);
    for (uint32_t at = 0; at < kernel.slot_count; at++)
        queues |= kernel.slots[at].is_ready ? 1u << kernel.slots[at].queue : 0;
    pthread_mutex_unlock(&kernel.mutex);
    return queues == (1u << KERNEL_QUEUES) - 1;
}

/* ---- whoever is behind `forward` -------------------------------------------------------------------------------- */

static void answer_forwarded(void)
{
    static uint8_t message[PUMP_PAYLOAD_LENGTH_MAX + 4096];
    struct {
        struct fuse_out_header header;
        union {
            struct fuse_entry_out entry;
            struct fuse_attr_out attributes;
        } body;
    } out = {0};
    struct fuse_in_header in;
    ssize_t length = recv(kernel.forward_end, message, sizeof message, MSG_DONTWAIT);
    if (length == 0 || (length < 0 && (errno == EAGAIN || errno == ECONNRESET)))
        return;
    if (length < (ssize_t)sizeof in)
        fail("a forwarded request", length < 0 ? -errno : -EPROTO);
    memcpy(&in, message, sizeof in);
    if (in.len != (uint32_t)length)
        fail("the length of a forwarded request", -EPROTO);
    if (in.opcode == FUSE_INIT)
        return;
    kernel.forwarded++;
    if (kernel.is_deaf)
        return;
    out.header = (struct fuse_out_header){.len = sizeof out.header, .unique = in.unique};
    if (in.opcode == FUSE_LOOKUP) {
        out.body.entry.nodeid = KERNEL_VIRTUAL_NODE;
        out.header.len += (uint32_t)sizeof out.body.entry;
    } else if (in.opcode == FUSE_GETATTR) {
        out.body.attributes.attr.ino = KERNEL_VIRTUAL_NODE;
        out.header.len += (uint32_t)sizeof out.body.attributes;
    } else {
        out.header.error = -ENOENT;
    }
    /* The second one must reach nobody. */
    for (unsigned count = 0; count < 2; count++)
        if (send(kernel.forward_end, &out, out.header.len, MSG_NOSIGNAL) < 0 && errno != EPIPE)
            fail("answer a forwarded request", -errno);
}

/* ---- asking ------------------------------------------------------------------------------------------------------ */

static void take_events(void)
{
    struct pump_event event;
    while (kernel.events >= 0 && read(kernel.events, &event, sizeof event) == sizeof event) {
        if (event.kind == PUMP_EVENT_ERROR)
            kernel.errors_told++;
        else
            kernel.has_ended = true;
    }
}

/* An answer on /dev/fuse to `unique`; false: there is none yet. */
static bool take_answer(uint64_t unique, int *error)
{
    struct fuse_out_header out;
    ssize_t length = recv(kernel.device_end, kernel_message, sizeof kernel_message, MSG_DONTWAIT);
    if (length < 0 && errno == EAGAIN)
        return false;
    if (length < (ssize_t)sizeof out)
        fail("an answer", length < 0 ? -errno : -EPROTO);
    memcpy(&out, kernel_message, sizeof out);
    if (out.len != (uint32_t)length || (out.error != 0 && out.len != sizeof out))
        fail("the length of an answer", -EPROTO);
    if (out.unique == kernel.unanswered && out.unique != 0) {
        kernel.unanswered = 0;
        return false;
    }
    if (out.unique != unique)
        fail("an answer to nobody", -EPROTO);
    kernel_answer = kernel_message + sizeof out;
    kernel_answer_length = (size_t)length - sizeof out;
    *error = out.error;
    return true;
}

static bool take_slot(uint64_t unique, int *error)
{
    struct fuse_out_header out;
    pthread_mutex_lock(&kernel.mutex);
    struct slot *slot = kernel.answered;
    kernel.answered = NULL;
    pthread_mutex_unlock(&kernel.mutex);
    if (slot == NULL)
        return false;
    if (slot->unique != unique)
        fail("an answer by a ring to nobody", -EPROTO);
    const struct pump_uring_header *header = slot->parts[0].iov_base;
    memcpy(&out, header->in_out, sizeof out);
    kernel_answer = slot->parts[1].iov_base;
    kernel_answer_length = header->state.payload_length;
    *error = out.error;
    return true;
}

/* Waits until something has happened, and does what whoever is behind `forward` does. */
static void kernel_wait(void)
{
    struct pollfd ready[] = {{.fd = kernel.device_end, .events = POLLIN},
                             {.fd = kernel.forward_end, .events = POLLIN},
                             {.fd = kernel.events, .events = POLLIN},
                             {.fd = kernel.news, .events = POLLIN}};
    uint64_t count;
    int changed = poll(ready, sizeof ready / sizeof *ready, KERNEL_PATIENCE_MS);
    if (changed <= 0)
        fail("nothing happens", changed == 0 ? -ETIMEDOUT : -errno);
    if (ready[1].revents != 0)
        answer_forwarded();
    if (ready[2].revents != 0)
        take_events();
    if (ready[3].revents != 0 && read(kernel.news, &count, sizeof count) < 0 && errno != EAGAIN)
        fail("news", -errno);
}

static void put_into_ring(struct slot *slot, const struct iovec parts[3])
{
    struct pump_uring_header *header = slot->parts[0].iov_base;
    uint64_t one = 1;
    memcpy(header->in_out, parts[0].iov_base, parts[0].iov_len);
    if (parts[1].iov_len != 0)
        memcpy(header->argument, parts[1].iov_base, parts[1].iov_len);
    if (parts[2].iov_len != 0)
        memcpy(slot->parts[1].iov_base, parts[2].iov_base, parts[2].iov_len);
    pthread_mutex_lock(&kernel.mutex);
    slot->unique = kernel.unique;
    slot->commit_id = 3 * kernel.unique;
    slot->is_ready = false;
    slot->is_under_way = true;
    pthread_mutex_unlock(&kernel.mutex);
    header->state = (struct pump_uring_state){.commit_id = slot->commit_id,
                                              .payload_length = (uint32_t)parts[2].iov_len};
    if (write(slot->wake, &one, sizeof one) < 0)
        fail("wake an entry", -errno);
}

static bool by_ring(uint32_t opcode)
{
    return kernel.uring && opcode != FUSE_FORGET && opcode != FUSE_BATCH_FORGET && opcode != FUSE_INTERRUPT;
}

/* Sends a request: its structure, then names or bytes. False: the pump has ended, and says so. */
static bool kernel_send(uint32_t opcode, uint64_t node, const void *argument, size_t argument_length,
                        const void *payload, size_t payload_length)
{
    struct slot *slot = NULL;
    take_events();
    while (!kernel.has_ended && by_ring(opcode) && (slot = slot_ready()) == NULL)
        kernel_wait();
    if (kernel.has_ended)
        return false;
    kernel.unique += 2;
    struct fuse_in_header header = {.len = (uint32_t)(sizeof header + argument_length + payload_length),
                                    .opcode = opcode,
                                    .unique = kernel.unique,
                                    .nodeid = node};
    struct iovec parts[] = {{&header, sizeof header},
                            {(void *)(uintptr_t)argument, argument_length},
                            {(void *)(uintptr_t)payload, payload_length}};
    if (slot != NULL)
        put_into_ring(slot, parts);
    else if (writev(kernel.device_end, parts, 3) < 0)
        fail("send a request", -errno);
    return true;
}

/* Nobody waits any more for the last request; its answer may still come. */
static void leave_unanswered(void)
{
    pthread_mutex_lock(&kernel.mutex);
    kernel.unanswered = kernel.answered == NULL ? kernel.unique : 0;
    kernel.answered = NULL;
    pthread_mutex_unlock(&kernel.mutex);
}

/* 0 or a negative errno, as the pump answers; -ENOTCONN: it has ended, and says so. */
static int kernel_ask(uint32_t opcode, uint64_t node, const void *argument, size_t argument_length,
                      const void *payload, size_t payload_length)
{
    int error = 0;
    if (!kernel_send(opcode, node, argument, argument_length, payload, payload_length))
        return -ENOTCONN;
    while (by_ring(opcode) ? !take_slot(kernel.unique, &error) : !take_answer(kernel.unique, &error)) {
        if (kernel.has_ended) {
            leave_unanswered();
            return -ENOTCONN;
        }
        kernel_wait();
    }
    return error;
}

/* A request that is forwarded, and not answered before the pump's end. */
static void kernel_leave_unanswered(uint32_t opcode, uint64_t node, const void *payload, size_t payload_length)
{
    uint64_t before = kernel.forwarded;
    kernel.is_deaf = true;
    if (!kernel_send(opcode, node, NULL, 0, payload, payload_length))
        return;
    leave_unanswered();
    while (!kernel.has_ended && kernel.forwarded == before)
        kernel_wait();
}

/* ---- life -------------------------------------------------------------------------------------------------------- */

static void make_pair(int *first, int *second)
{
    int ends[2];
    if (__real_socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) < 0)
        fail("socketpair", -errno);
    *first = ends[0];
    *second = ends[1];
}

/* With the kernel's greeting on its way. */
static void kernel_begin(bool uring)
{
    struct {
        struct fuse_in_header header;
        struct fuse_init_in in;
    } greeting = {
        .header = {.len = sizeof greeting, .opcode = FUSE_INIT, .unique = 2},
        .in = {.major = FUSE_KERNEL_VERSION, .minor = 45, .flags = UINT32_MAX},
    };
    greeting.in.flags2 = uring ? (uint32_t)(PUMP_FLAG_OVER_IO_URING >> 32) : 0;
    make_pair(&kernel.device, &kernel.device_end);
    make_pair(&kernel.forward, &kernel.forward_end);
    kernel.news = __real_eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    kernel.events = -1;
    kernel.uring = kernel.is_deaf = kernel.has_ended = false;
    kernel.unique = 2;
    kernel.unanswered = 0;
    kernel.slot_count = kernel.slot_next = 0;
    kernel.answered = NULL;
    if (kernel.news < 0 || send(kernel.device_end, &greeting, sizeof greeting, 0) != sizeof greeting)
        fail("greet", -errno);
}

/* After pump_stop(): everything that was asked has been answered, and nothing else. */
static void kernel_check_silence(void)
{
    int error;
    bool by_device = kernel.unanswered != 0 && !kernel.uring && !kernel.has_ended;
    (void)take_answer(0, &error);
    if (by_device && kernel.unanswered != 0)
        fail("a forwarded request is never answered", -ETIMEDOUT);
    if (take_answer(0, &error) || take_slot(0, &error))
        fail("an answer after the end", -EPROTO);
}

static void kernel_end(void)
{
    for (uint32_t at = 0; at < kernel.slot_count; at++)
        close(kernel.slots[at].wake);
    close(kernel.device);
    close(kernel.device_end);
    close(kernel.forward);
    close(kernel.forward_end);
    close(kernel.news);
}

#endif
