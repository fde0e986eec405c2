/* Requests over io_uring (Linux 6.14, Documentation/filesystems/fuse/fuse-io-uring.rst): the kernel puts a request into
 * the ring of the CPU that made it, and a thread that is pinned there answers, so that nobody else has to be woken.
 *
 * An entry of a ring: registered -> [request arrives] -> handled -> committed, which asks for the next request; or
 * handed to somebody else -> answered, which puts it on the queue's list and wakes the queue's thread, since only that
 * thread may submit. */
#define _GNU_SOURCE /* CPU_SET */
#include "pump_internal.h"

#include <errno.h>
#include <liburing.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

/* Enough that requests which somebody else answers leave some for those answered here. The memory behind an entry is
 * taken when the kernel first writes there; all together it stays below PAYLOADS_BYTES_MAX. */
#define ENTRIES_MAX 16u
/* Snapshots that wait for the pages of a queue may not take all of its entries (pump_cache.c). */
#define ENTRIES_MIN 4u
/* Where an fsync takes longer than this, it is left to a thread of its own: then waking that costs little beside the
 * flush, and the requests of this CPU need not wait for the medium. Below, the thread that has it is quickest. */
#define COMMIT_SLOW_NS 200000u
/* Reads from this size on go to a worker: while it reads and verifies, this CPU copies what came before to whoever
 * reads, and a wake-up is little beside the time that takes. So do writes that are compressed, which takes this CPU's
 * other requests too long to wait for. */
#define LENGTH_LARGE_BYTES (256u << 10)
#define RING_FLAGS (IORING_SETUP_SQE128 | IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_COOP_TASKRUN)
#define PAYLOADS_BYTES_MAX (UINT64_C(512) << 20)

struct queue;

struct pump_entry {
    struct pump_uring_header header;
    struct iovec parts[2];
    struct queue *queue;
    struct pump_request request;
    struct pump_answer answer;
    uint64_t commit_id;
    uint64_t started_ns;
    struct pump_entry *_Atomic next; /* on the queue's list of those answered elsewhere */
    struct pump_entry *next_work;    /* among those that wait for an fsync or for a worker */
};

struct queue {
    struct pump *pump;
    struct io_uring ring;
    bool has_ring;
    uint16_t cpu;
    uint32_t entry_count;
    struct pump_entry *entries;
    uint8_t *payloads;
    struct pump_counters *counters;
    struct pump_entry *_Atomic answered;
    int wake_descriptor; /* an eventfd that the ring reads */
    uint64_t wake_count;
    struct pump_entry *commits;
    struct pump_gap gap;
};

struct pump_uring {
    struct pump *pump;
    uint32_t queue_count;
    struct queue *queues;
    struct pump_workers *workers;
};

struct pump_answer *pump_entry_answer(struct pump_entry *entry)
{
    return &entry->answer;
}

struct pump_entry **pump_entry_link(struct pump_entry *entry)
{
    return &entry->next_work;
}

void pump_entry_count(const struct pump_entry *entry, struct pump_counters *counters)
{
    pump_count(counters, entry->request.header.opcode, false, pump_now_ns() - entry->started_ns);
}

void pump_entry_handle(struct pump_entry *entry)
{
    (void)pump_handle(entry->queue->pump, &entry->request, &entry->answer);
}

void pump_uring_answered(struct pump_entry *entry)
{
    struct queue *queue = entry->queue;
    uint64_t one = 1;
    struct pump_entry *head = atomic_load(&queue->answered);
    do
        atomic_store_explicit(&entry->next, head, memory_order_relaxed);
    while (!atomic_compare_exchange_weak(&queue->answered, &head, entry));
    if (head == NULL)
        while (write(queue->wake_descriptor, &one, sizeof one) < 0 && errno == EINTR)
            ;
}

/* ---- submissions ------------------------------------------------------------------------------------------------- */

static struct io_uring_sqe *take_submission(struct queue *queue)
{
    struct io_uring_sqe *sqe = io_uring_get_sqe(&queue->ring);
    if (sqe != NULL)
        memset(sqe, 0, 2 * sizeof *sqe); /* they are twice as long as the type says: SQE128 */
    return sqe;
}

static int submit(struct queue *queue, struct pump_entry *entry, enum pump_uring_command command)
{
    struct io_uring_sqe *sqe = take_submission(queue);
    struct pump_uring_submission submission = {.commit_id = entry->commit_id, .queue = queue->cpu};
    if (sqe == NULL)
        return -EBUSY;
    sqe->opcode = IORING_OP_URING_CMD;
    sqe->fd = queue->pump->options.device;
    sqe->cmd_op = command;
    sqe->user_data = (uintptr_t)entry;
    if (command == PUMP_URING_REGISTER) {
        sqe->addr = (uintptr_t)entry->parts;
        sqe->len = 2;
    }
    memcpy(sqe->cmd, &submission, sizeof submission);
    return 0;
}

/* Reads the eventfd in the ring; its completion has user_data 0. */
static int submit_wake(struct queue *queue)
{
    struct io_uring_sqe *sqe = take_submission(queue);
    if (sqe == NULL)
        return -EBUSY;
    sqe->opcode = IORING_OP_READ;
    sqe->fd = queue->wake_descriptor;
    sqe->addr = (uintptr_t)&queue->wake_count;
    sqe->len = sizeof queue->wake_count;
    return 0;
}

/* The pump's stop: the eventfd of it stays readable, user_data is 1. */
static int submit_stop(struct queue *queue)
{
    struct io_uring_sqe *sqe = take_submission(queue);
    if (sqe == NULL)
        return -EBUSY;
    sqe->opcode = IORING_OP_POLL_ADD;
    sqe->fd = queue->pump->stop_descriptor;
    sqe->poll32_events = 1; /* POLLIN */
    sqe->user_data = 1;
    return 0;
}

/* ---- requests ---------------------------------------------------------------------------------------------------- */

static int commit_entry(struct queue *queue, struct pump_entry *entry)
{
    size_t length = entry->answer.error == 0 ? entry->answer.length : 0;
    struct fuse_out_header out = {.len = (uint32_t)(sizeof out + length),
                                  .error = entry->answer.error,
                                  .unique = entry->request.header.unique};
    memcpy(entry->header.in_out, &out, sizeof out);
    entry->header.state.payload_length = (uint32_t)length;
    return submit(queue, entry, PUMP_URING_COMMIT_AND_FETCH);
}

static int answer_now(struct queue *queue, struct pump_entry *entry)
{
    pump_entry_count(entry, queue->counters);
    return commit_entry(queue, entry);
}

static bool is_large_read(const struct queue *queue, const struct pump_request *request)
{
    struct fuse_read_in in;
    if (request->header.opcode != FUSE_READ || queue->pump->uring->queue_count == 1)
        return false;
    memcpy(&in, request->argument, sizeof in);
    return in.size >= LENGTH_LARGE_BYTES;
}

static bool is_large_compressed_write(const struct queue *queue, const struct pump_request *request)
{
    struct fuse_write_in in;
    if (request->header.opcode != FUSE_WRITE)
        return false;
    memcpy(&in, request->argument, sizeof in);
    return in.size >= LENGTH_LARGE_BYTES && filesystem_compresses(queue->pump->filesystem, request->header.nodeid);
}

static int handle(struct queue *queue, struct pump_entry *entry)
{
    struct pump *pump = queue->pump;
    struct pump_request *request = &entry->request;
    memcpy(&request->header, entry->header.in_out, sizeof request->header);
    entry->commit_id = entry->header.state.commit_id;
    entry->started_ns = pump_now_ns();
    pump_gap_note(&queue->gap, entry->started_ns);
    if (pump->awake != NULL)
        pump_awake_note(pump->awake, &queue->gap);
    uint32_t length = entry->header.state.payload_length;
    request->argument = (const uint8_t *)entry->header.argument;
    request->payload = entry->parts[1].iov_base;
    request->payload_length = length;
    entry->answer = (struct pump_answer){.bytes = entry->parts[1].iov_base, .room = PUMP_PAYLOAD_LENGTH_MAX};
    if (length > PUMP_PAYLOAD_LENGTH_MAX) {
        (void)pump_fail(&entry->answer, -EINVAL);
        return answer_now(queue, entry);
    }
    if (is_large_read(queue, request)) {
        pump_workers_read(pump->uring->workers, entry);
        return 0;
    }
    if (is_large_compressed_write(queue, request)) {
        pump_workers_write(pump->uring->workers, entry);
        return 0;
    }
    enum pump_outcome outcome = pump_handle(pump, request, &entry->answer);
    switch (outcome) {
    case PUMP_FORWARD:
    case PUMP_SNAPSHOT: {
        int error = pump_hand_over(pump, outcome, request, entry, entry->started_ns);
        if (error == 0)
            return 0;
        (void)pump_fail(&entry->answer, error);
        return answer_now(queue, entry);
    }
    case PUMP_COMMIT:
        entry->next_work = queue->commits;
        queue->commits = entry;
        return 0;
    case PUMP_SILENT:
        (void)pump_fail(&entry->answer, 0); /* over a ring every request is committed */
        return answer_now(queue, entry);
    case PUMP_ANSWERED:
    default:
        return answer_now(queue, entry);
    }
}

/* One commit does for all of a list: `done` says that it has been made since they arrived. That of a read-only or stale
 * node is none, and says nothing about the others; nor does a 0 once the store has failed: this handle has heard of it
 * before. */
void pump_entry_commit(struct pump_entry *entry, bool *done)
{
    struct pump *pump = entry->queue->pump;
    uint64_t node = entry->request.header.nodeid;
    bool is_real = !filesystem_is_read_only_node(pump->filesystem, node);
    if (*done && is_real) {
        (void)pump_fail(&entry->answer, 0);
        return;
    }
    pump_commit(pump, &entry->request, &entry->answer);
    *done = *done || (is_real && entry->answer.error == 0 && !filesystem_has_failed(pump->filesystem));
}

/* After everything else that has arrived. */
static int handle_commits(struct queue *queue)
{
    struct pump_workers *workers = queue->pump->uring->workers;
    bool is_slow = atomic_load(&queue->pump->commit_ns) > COMMIT_SLOW_NS, done = false;
    int error = 0;
    while (error == 0 && queue->commits != NULL) {
        struct pump_entry *entry = queue->commits;
        queue->commits = entry->next_work;
        if (is_slow) {
            pump_workers_commit(workers, entry);
            continue;
        }
        pump_entry_commit(entry, &done);
        error = answer_now(queue, entry);
    }
    return error;
}

static int commit_answered(struct queue *queue)
{
    struct pump_entry *entry = atomic_exchange(&queue->answered, NULL);
    int error = 0;
    while (error == 0 && entry != NULL) {
        struct pump_entry *next = atomic_load_explicit(&entry->next, memory_order_relaxed);
        error = commit_entry(queue, entry);
        entry = next;
    }
    return error;
}

/* ---- the thread -------------------------------------------------------------------------------------------------- */

/* 1: go on; 0: the end. */
static int complete(struct queue *queue, const struct io_uring_cqe *cqe)
{
    int error;
    if (cqe->user_data == 1)
        return 0;
    if (cqe->user_data == 0) {
        error = cqe->res < 0 && cqe->res != -EINTR && cqe->res != -EAGAIN ? cqe->res : submit_wake(queue);
    } else if (cqe->res == -ENOTCONN || cqe->res == -ECONNABORTED || cqe->res == -ECANCELED) {
        pump_ended(queue->pump);
        return 0;
    } else {
        error = cqe->res < 0 ? cqe->res : handle(queue, (struct pump_entry *)(uintptr_t)cqe->user_data);
    }
    return error < 0 ? error : 1;
}

static int serve(struct queue *queue)
{
    int result = 1;
    while (result > 0) {
        int submitted = io_uring_submit_and_wait(&queue->ring, 1);
        if (submitted < 0 && submitted != -EINTR && submitted != -EBUSY)
            return submitted;
        struct io_uring_cqe *cqe;
        unsigned position, seen = 0;
        io_uring_for_each_cqe(&queue->ring, position, cqe)
        {
            seen++;
            if (result > 0)
                result = complete(queue, cqe);
        }
        io_uring_cq_advance(&queue->ring, seen);
        int error = commit_answered(queue);
        if (error == 0)
            error = handle_commits(queue);
        result = result > 0 && error < 0 ? error : result;
    }
    /* What was answered in the last round goes out still. */
    (void)io_uring_submit(&queue->ring);
    return result;
}

/* By the thread that will submit, which is the ring's single issuer. */
static int make_ring(struct queue *queue)
{
    struct io_uring_params parameters = {.flags = RING_FLAGS};
    int error = io_uring_queue_init_params(2 * (queue->entry_count + 2), &queue->ring, &parameters);
    queue->has_ring = error == 0;
    return error;
}

static int register_entries(struct queue *queue)
{
    int error = submit_wake(queue);
    if (error == 0)
        error = submit_stop(queue);
    for (uint32_t at = 0; error == 0 && at < queue->entry_count; at++)
        error = submit(queue, &queue->entries[at], PUMP_URING_REGISTER);
    return error;
}

static void *serve_queue(void *argument)
{
    struct queue *queue = argument;
    cpu_set_t only;
    CPU_ZERO(&only);
    CPU_SET(queue->cpu, &only);
    /* A possible CPU that is offline makes no requests, but its queue must exist. */
    (void)sched_setaffinity(0, sizeof only, &only);
    int error = make_ring(queue);
    if (error == 0)
        error = register_entries(queue);
    if (error == 0)
        error = serve(queue);
    if (error < 0 && !atomic_load(&queue->pump->stopping)) {
        /* Requests wait for a queue that is not there: without it the mount cannot go on. */
        pump_event(queue->pump, PUMP_EVENT_FAILED, 0, 0, error);
        pump_ended(queue->pump);
    }
    return NULL;
}

/* ---- life -------------------------------------------------------------------------------------------------------- */

/* The kernel wants a queue for each CPU that there could be. */
static int possible_cpu_count(uint32_t *count)
{
    char text[256] = {0};
    FILE *file = fopen("/sys/devices/system/cpu/possible", "re");
    if (file == NULL)
        return -errno;
    size_t length = fread(text, 1, sizeof text - 1, file);
    fclose(file);
    const char *last = text;
    for (size_t at = 0; at < length; at++)
        if (text[at] == '-' || text[at] == ',')
            last = text + at + 1;
    char *end;
    unsigned long highest = strtoul(last, &end, 10);
    if (end == last || highest >= CPU_SETSIZE)
        return -ERANGE;
    *count = (uint32_t)highest + 1;
    return 0;
}

static int make_queue(struct pump_uring *uring, uint16_t cpu, uint32_t entry_count)
{
    struct queue *queue = &uring->queues[cpu];
    queue->pump = uring->pump;
    queue->cpu = cpu;
    queue->gap.smoothed_ns = PUMP_GAP_MAX_NS;
    queue->entry_count = entry_count;
    queue->wake_descriptor = eventfd(0, EFD_CLOEXEC);
    if (queue->wake_descriptor < 0)
        return -errno;
    queue->counters = pump_counters_create(uring->pump);
    queue->entries = aligned_alloc(64, (entry_count * sizeof *queue->entries + 63) / 64 * 64);
    void *payloads = mmap(NULL, (size_t)entry_count * PUMP_PAYLOAD_LENGTH_MAX, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    queue->payloads = payloads == MAP_FAILED ? NULL : payloads;
    if (queue->counters == NULL || queue->entries == NULL || queue->payloads == NULL)
        return -ENOMEM;
    memset(queue->entries, 0, entry_count * sizeof *queue->entries);
    for (uint32_t at = 0; at < entry_count; at++) {
        struct pump_entry *entry = &queue->entries[at];
        entry->queue = queue;
        entry->parts[0] = (struct iovec){&entry->header, sizeof entry->header};
        entry->parts[1] =
            (struct iovec){queue->payloads + (size_t)at * PUMP_PAYLOAD_LENGTH_MAX, PUMP_PAYLOAD_LENGTH_MAX};
    }
    return 0;
}

/* Whether the kernel lets us make such rings: it must be known before INIT is answered. */
static int try_ring(void)
{
    struct io_uring_params parameters = {.flags = RING_FLAGS};
    struct io_uring ring;
    int error = io_uring_queue_init_params(ENTRIES_MAX, &ring, &parameters);
    if (error == 0)
        io_uring_queue_exit(&ring);
    return error;
}

int pump_uring_create(struct pump *pump, struct pump_uring **out)
{
    struct pump_uring *uring = calloc(1, sizeof *uring);
    uint32_t count = 0;
    if (uring == NULL)
        return -ENOMEM;
    uring->pump = pump;
    int error = try_ring();
    if (error == 0)
        error = possible_cpu_count(&count);
    if (error == 0 && (uring->queues = calloc(count, sizeof *uring->queues)) == NULL)
        error = -ENOMEM;
    uint64_t fitting = PAYLOADS_BYTES_MAX / PUMP_PAYLOAD_LENGTH_MAX / (count != 0 ? count : 1);
    uint32_t entry_count = fitting > ENTRIES_MAX ? ENTRIES_MAX : (uint32_t)fitting;
    if (entry_count < ENTRIES_MIN)
        entry_count = ENTRIES_MIN;
    while (error == 0 && uring->queue_count < count) {
        uring->queues[uring->queue_count].wake_descriptor = -1;
        error = make_queue(uring, (uint16_t)uring->queue_count++, entry_count);
    }
    if (error == 0)
        *out = uring;
    else
        pump_uring_destroy(uring);
    return error;
}

uint32_t pump_uring_entry_count(const struct pump_uring *uring)
{
    return uring->queues[0].entry_count;
}

int pump_uring_start(struct pump_uring *uring)
{
    int error = pump_workers_start(uring->pump, &uring->workers);
    for (uint32_t at = 0; error == 0 && at < uring->queue_count; at++)
        error = pump_thread_start(uring->pump, serve_queue, &uring->queues[at]);
    return error;
}

void pump_uring_stop(struct pump_uring *uring)
{
    if (uring->workers != NULL)
        pump_workers_stop(uring->workers);
}

void pump_uring_destroy(struct pump_uring *uring)
{
    for (uint32_t at = 0; at < uring->queue_count; at++) {
        struct queue *queue = &uring->queues[at];
        if (queue->has_ring)
            io_uring_queue_exit(&queue->ring);
        if (queue->payloads != NULL)
            munmap(queue->payloads, (size_t)queue->entry_count * PUMP_PAYLOAD_LENGTH_MAX);
        free(queue->entries);
        if (queue->wake_descriptor >= 0)
            close(queue->wake_descriptor);
    }
    if (uring->workers != NULL)
        pump_workers_destroy(uring->workers);
    free(uring->queues);
    free(uring);
}
