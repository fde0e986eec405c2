/* FUSE over io_uring (Linux 6.14): the kernel puts a request into the ring of the CPU that made it, and a thread that
 * is pinned there answers. The layout is that of the kernel's include/uapi/linux/fuse.h, protocol 7.42. */
#define _GNU_SOURCE /* CPU_SET */
#include "transport.h"

#include <errno.h>
#include <liburing.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

enum {
    COMMAND_REGISTER = 1,
    COMMAND_COMMIT_AND_FETCH = 2,
    ENTRIES_PER_QUEUE = 16,
};

struct entry_state {
    uint64_t flags;
    uint64_t commit_id;
    uint32_t payload_size_bytes;
    uint32_t padding;
    uint64_t reserved;
};

struct entry_header {
    char in_out[128]; /* fuse_in_header, replaced by the answer's fuse_out_header */
    char argument[128];
    struct entry_state state;
};

struct command {
    uint64_t flags;
    uint64_t commit_id;
    uint16_t queue;
    uint8_t padding[6];
};

struct entry {
    struct entry_header header;
    struct iovec parts[2];
    char *payload;
    struct answer answer;
};

struct queue {
    struct io_uring ring;
    struct entry *entries;
    pthread_t thread;
    int descriptor;
    uint16_t cpu;
};

static int submit(struct queue *queue, struct entry *entry, uint32_t operation, uint64_t commit_id) {
    struct io_uring_sqe *sqe = io_uring_get_sqe(&queue->ring);
    if (!sqe) {
        return -EBUSY;
    }
    struct command command = {.commit_id = commit_id, .queue = queue->cpu};
    memset(sqe, 0, 2 * sizeof *sqe);
    sqe->opcode = IORING_OP_URING_CMD;
    sqe->fd = queue->descriptor;
    sqe->cmd_op = operation;
    sqe->user_data = (uint64_t)(uintptr_t)entry;
    if (operation == COMMAND_REGISTER) {
        sqe->addr = (uint64_t)(uintptr_t)entry->parts;
        sqe->len = 2;
    }
    memcpy(sqe->cmd, &command, sizeof command);
    return 0;
}

static void answer_entry(struct entry *entry) {
    struct fuse_in_header in;
    memcpy(&in, entry->header.in_out, sizeof in);
    struct request request = {
        .header = &in,
        .argument = entry->header.argument,
        .argument_size_bytes = sizeof entry->header.argument,
        .payload = entry->payload,
        .payload_size_bytes = entry->header.state.payload_size_bytes,
    };
    entry->answer.bytes = entry->payload;
    memory_answer(&request, &entry->answer);
    size_t size_bytes = entry->answer.error ? 0 : entry->answer.size_bytes;
    struct fuse_out_header out = {
        .len = (uint32_t)(sizeof out + size_bytes), .error = entry->answer.error, .unique = in.unique};
    memcpy(entry->header.in_out, &out, sizeof out);
    entry->header.state.payload_size_bytes = (uint32_t)size_bytes;
}

static int make_entries(struct queue *queue) {
    queue->entries = calloc(ENTRIES_PER_QUEUE, sizeof *queue->entries);
    if (!queue->entries) {
        return -ENOMEM;
    }
    for (unsigned i = 0; i < ENTRIES_PER_QUEUE; i++) {
        struct entry *entry = &queue->entries[i];
        if (posix_memalign((void **)&entry->payload, 4096, PAYLOAD_SIZE_BYTES_MAX)) {
            return -ENOMEM;
        }
        memset(entry->payload, 0, PAYLOAD_SIZE_BYTES_MAX);
        entry->parts[0] = (struct iovec){&entry->header, sizeof entry->header};
        entry->parts[1] = (struct iovec){entry->payload, PAYLOAD_SIZE_BYTES_MAX};
        int error = submit(queue, entry, COMMAND_REGISTER, 0);
        if (error) {
            return error;
        }
    }
    return 0;
}

static int serve_ring(struct queue *queue) {
    for (;;) {
        int error = io_uring_submit_and_wait(&queue->ring, 1);
        if (error < 0 && error != -EINTR) {
            return error;
        }
        struct io_uring_cqe *cqe;
        unsigned position, seen = 0;
        io_uring_for_each_cqe(&queue->ring, position, cqe) {
            seen++;
            if (cqe->res == -ENOTCONN || cqe->res == -ECONNABORTED) {
                return 0;
            }
            if (cqe->res < 0) {
                return cqe->res;
            }
            struct entry *entry = (struct entry *)(uintptr_t)cqe->user_data;
            uint64_t commit_id = entry->header.state.commit_id;
            answer_entry(entry);
            error = submit(queue, entry, COMMAND_COMMIT_AND_FETCH, commit_id);
            if (error) {
                return error;
            }
        }
        io_uring_cq_advance(&queue->ring, seen);
    }
}

static void *run_queue(void *argument) {
    struct queue *queue = argument;
    cpu_set_t only;
    CPU_ZERO(&only);
    CPU_SET(queue->cpu, &only);
    /* A possible CPU that is offline makes no requests, but its queue must exist. */
    if (sched_setaffinity(0, sizeof only, &only) < 0 && errno != EINVAL) {
        fprintf(stderr, "ceiling: cannot pin a thread to CPU %u: %s\n", queue->cpu, strerror(errno));
    }
    intptr_t error = io_uring_queue_init(2 * ENTRIES_PER_QUEUE, &queue->ring,
                                         IORING_SETUP_SQE128 | IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_COOP_TASKRUN);
    if (!error) {
        error = make_entries(queue);
    }
    if (!error) {
        error = serve_ring(queue);
    }
    if (error) {
        /* Requests wait for a queue that is not there: without it the mount cannot go on. */
        fprintf(stderr, "ceiling: queue %u: %s\n", queue->cpu, strerror((int)-error));
        _exit(1);
    }
    return NULL;
}

int serve_uring(int descriptor) {
    long cpu_count = sysconf(_SC_NPROCESSORS_CONF);
    int result = -ENOMEM;
    struct queue *queues = calloc((size_t)cpu_count, sizeof *queues);
    if (!queues) {
        return result;
    }
    for (long i = 0; i < cpu_count; i++) {
        queues[i].descriptor = descriptor;
        queues[i].cpu = (uint16_t)i;
        result = -pthread_create(&queues[i].thread, NULL, run_queue, &queues[i]);
        if (result) {
            return result; /* the process ends, and with it what was started */
        }
    }
    result = serve_device(descriptor);
    for (long i = 0; i < cpu_count; i++) {
        pthread_join(queues[i].thread, NULL);
    }
    return result;
}
