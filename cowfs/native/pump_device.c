/* Requests over /dev/fuse. All threads read one descriptor, since an answer must go to the open file description that
 * its request was read from. With io_uring only forgets, interrupts and what comes before the rings are ready arrive
 * here.
 *
 * A thread that has just answered polls for a moment before it sleeps: on a virtual machine waking a halted core costs
 * several times what a request does. */
#include "pump_internal.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/uio.h>
#include <unistd.h>

/* About what a wake-up costs: polling longer cannot pay. Only one thread polls, and only while requests come closer
 * together than that. */
#define POLL_NS 50000u
/* Beside io_uring this descriptor brings forgets: nobody waits for them, and a pause lets the kernel hand over many at
 * once instead of waking a thread for each. */
#define FORGET_PAUSE_MS 1

struct device_thread {
    struct pump *pump;
    struct pump_counters *counters;
    uint8_t *message; /* PUMP_MESSAGE_LENGTH_MAX */
    uint8_t *answer;  /* PUMP_PAYLOAD_LENGTH_MAX */
    struct pump_gap gap;
    int ready; /* an epoll of the device and the pump's stop: a request wakes one thread, not all */
};

int pump_device_answer(struct pump *pump, uint64_t unique, int error, const void *bytes, size_t length)
{
    struct fuse_out_header header = {.unique = unique, .error = error};
    if (error != 0)
        length = 0;
    header.len = (uint32_t)(sizeof header + length);
    struct iovec parts[] = {{&header, sizeof header}, {(void *)(uintptr_t)bytes, length}};
    if (writev(pump->options.device, parts, 2) >= 0 || errno == ENOENT || errno == ENODEV)
        return 0; /* interrupted, or unmounted */
    /* The kernel may lack memory for what an answer carries; whoever waits gets at least an error. */
    return error != 0 ? -errno : pump_device_answer(pump, unique, -EIO, NULL, 0);
}

static int handle(struct device_thread *thread, size_t length)
{
    struct pump *pump = thread->pump;
    struct pump_request request;
    struct pump_answer answer = {.bytes = thread->answer, .room = PUMP_PAYLOAD_LENGTH_MAX};
    uint64_t started_ns = thread->gap.last_ns;
    if (length < sizeof request.header)
        return -EPROTO;
    memcpy(&request.header, thread->message, sizeof request.header);
    uint32_t opcode = request.header.opcode;
    size_t rest = length - sizeof request.header, argument_length = pump_argument_length(opcode);
    if (request.header.len != length)
        return -EPROTO;
    if (rest < argument_length)
        return pump_device_answer(pump, request.header.unique, -EINVAL, NULL, 0);
    request.argument = thread->message + sizeof request.header;
    request.payload = request.argument + argument_length;
    request.payload_length = rest - argument_length;
    enum pump_outcome outcome = pump_handle(pump, &request, &answer);
    if (outcome == PUMP_FORWARD || outcome == PUMP_SNAPSHOT) {
        int error = pump_hand_over(pump, outcome, &request, NULL, started_ns);
        return error == 0 ? 0 : pump_device_answer(pump, request.header.unique, error, NULL, 0);
    }
    if (outcome == PUMP_COMMIT)
        pump_commit(pump, &request, &answer);
    pump_count(thread->counters, opcode, false, pump_now_ns() - started_ns);
    if (outcome == PUMP_SILENT)
        return 0;
    return pump_device_answer(pump, request.header.unique, answer.error, answer.bytes, answer.length);
}

/* 1: there may be a request; 0: the pump stops; negative: an error. */
static int wait_for_request(struct device_thread *thread)
{
    struct pump *pump = thread->pump;
    struct epoll_event event;
    bool polls = thread->gap.smoothed_ns < POLL_NS && pump->uring == NULL && !atomic_exchange(&pump->polling, true);
    if (polls) {
        int count = 0;
        while (count == 0 && pump_now_ns() - thread->gap.last_ns < POLL_NS)
            count = epoll_wait(thread->ready, &event, 1, 0);
        atomic_store(&pump->polling, false);
        if (count > 0)
            return !atomic_load(&pump->stopping);
    }
    if (epoll_wait(thread->ready, &event, 1, -1) < 0)
        return errno == EINTR ? 1 : -errno;
    return !atomic_load(&pump->stopping);
}

static bool is_forget(const struct device_thread *thread, size_t length)
{
    struct fuse_in_header header;
    if (length < sizeof header)
        return false;
    memcpy(&header, thread->message, sizeof header);
    return header.opcode == FUSE_FORGET || header.opcode == FUSE_BATCH_FORGET;
}

static void pause_for_forgets(const struct device_thread *thread)
{
    struct pollfd stop = {.fd = thread->pump->stop_descriptor, .events = POLLIN};
    (void)poll(&stop, 1, FORGET_PAUSE_MS);
}

static int serve(struct device_thread *thread)
{
    int result = 1;
    while (result > 0) {
        ssize_t length = read(thread->pump->options.device, thread->message, PUMP_MESSAGE_LENGTH_MAX);
        if (length >= 0) {
            pump_gap_note(&thread->gap, pump_now_ns());
            if (thread->pump->awake != NULL)
                pump_awake_note(thread->pump->awake, &thread->gap);
            int error = handle(thread, (size_t)length);
            result = error != 0 ? error : 1;
            if (result > 0 && thread->pump->uring != NULL && is_forget(thread, (size_t)length))
                pause_for_forgets(thread);
        } else if (errno == EAGAIN) {
            result = wait_for_request(thread);
        } else if (errno == ENODEV || errno == ECONNABORTED) {
            pump_ended(thread->pump);
            return 0;
        } else if (errno != EINTR && errno != ENOENT) { /* ENOENT: interrupted while it was being read */
            result = -errno;
        }
    }
    return result;
}

static int make_ready(struct device_thread *thread)
{
    struct epoll_event device = {.events = EPOLLIN | EPOLLEXCLUSIVE}, stop = {.events = EPOLLIN};
    thread->ready = epoll_create1(EPOLL_CLOEXEC);
    if (thread->ready < 0 || epoll_ctl(thread->ready, EPOLL_CTL_ADD, thread->pump->options.device, &device) < 0 ||
        epoll_ctl(thread->ready, EPOLL_CTL_ADD, thread->pump->stop_descriptor, &stop) < 0)
        return -errno;
    return 0;
}

static void *serve_device(void *argument)
{
    struct pump *pump = argument;
    struct device_thread thread = {.pump = pump, .gap = {.smoothed_ns = PUMP_GAP_MAX_NS}, .ready = -1};
    thread.counters = pump_counters_create(pump);
    thread.message = malloc(PUMP_MESSAGE_LENGTH_MAX);
    thread.answer = malloc(PUMP_PAYLOAD_LENGTH_MAX);
    int error = -ENOMEM;
    if (thread.counters != NULL && thread.message != NULL && thread.answer != NULL)
        error = make_ready(&thread);
    if (error == 0)
        error = serve(&thread);
    if (error < 0)
        pump_event(pump, PUMP_EVENT_FAILED, 0, 0, error);
    if (thread.ready >= 0)
        close(thread.ready);
    free(thread.message);
    free(thread.answer);
    return NULL;
}

int pump_device_start(struct pump *pump)
{
    uint32_t count = pump->uring != NULL ? 1 : pump->options.threads;
    int error = 0;
    for (uint32_t started = 0; error == 0 && started < count; started++)
        error = pump_thread_start(pump, serve_device, pump);
    return error;
}
