/* The pump: threads that answer the kernel's requests where they arrive, by the verbs of filesystem.h, without Python.
 * What they do not answer themselves (the `.cowfs` tree) goes over a socket to whoever serves it, as messages of
 * /dev/fuse.
 *
 * Transports, in order of preference: FUSE over io_uring, one thread pinned to each CPU; threads on /dev/fuse. */
#ifndef COWFS_PUMP_H
#define COWFS_PUMP_H

#include "filesystem.h"

#define PUMP_PAYLOAD_LENGTH_MAX (1u << 20)

struct pump;

struct pump_options {
    int device;           /* /dev/fuse, mounted; the caller closes it after pump_stop() */
    int forward;          /* SOCK_SEQPACKET: one end of a pair */
    bool uring;           /* wanted; it is used when the kernel offers it */
    bool awake;           /* CPUs do not halt while requests follow one another closely, if this process may ask */
    bool writeback;       /* the kernel keeps dirty pages: `mountpoint` is needed, and CAP_DAC_READ_SEARCH */
    bool honours_setuid;  /* the mount does: setuid bits of read-only trees are hidden */
    uint32_t threads;     /* on /dev/fuse, at least 1 */
    const char *reserved; /* this name in a root leads to a forwarded node, and nobody may make or take it */
    const char *mountpoint; /* where the device is mounted; NULL unless `writeback` */
};

/* Answers the kernel's INIT, which is the first message of a mount, and sends a synthetic one over `forward`. Blocks
 * until the kernel has sent it. No thread runs yet. When io_uring was wanted and is not used, `reason` says why. */
int pump_create(struct filesystem *filesystem, const struct pump_options *options, struct pump **out,
                char reason[128]);
/* Starts the threads. On failure the connection is of no use any more. */
int pump_start(struct pump *pump);
/* Ends the threads; requests under way are answered first. Thread-safe, may be called twice. */
void pump_stop(struct pump *pump);
/* With `writeback`: returns when everything that programs have written before, to files of any tree, has arrived in
 * verbs, times included. -ENXIO when files may be dirty and the mountpoint does not lead to the mount any more;
 * otherwise the error of a file whose pages were refused (-ENOSPC, -EIO), which the kernel has dropped and tells once.
 * Waits for requests that the pump answers: never to be called by its threads, nor by whoever serves `forward`. */
int pump_flush(struct pump *pump);
/* After pump_stop(). */
void pump_destroy(struct pump *pump);

bool pump_uses_uring(const struct pump *pump);
uint64_t pump_open_files(const struct pump *pump);
uint32_t pump_protocol_minor(const struct pump *pump);

/* What the daemon is told, one record per read() of pump_event_descriptor(). Of errors, those that find the pipe full
 * are lost. */
enum pump_event_kind {
    PUMP_EVENT_ENDED = 1,  /* unmounted, or the connection aborted */
    PUMP_EVENT_FAILED = 2, /* a thread gave up: `error` */
    PUMP_EVENT_ERROR = 3,  /* a request was answered with EIO: `error` is what the verb said */
};
struct pump_event {
    uint32_t kind;
    uint32_t opcode;
    uint64_t node;
    int32_t error;
    uint32_t padding;
};
int pump_event_descriptor(const struct pump *pump);

/* Latencies from arrival to answer, in classes of a quarter of an octave. */
#define PUMP_LATENCY_CLASSES 128u
struct pump_latency {
    uint64_t count;
    uint64_t total_ns;
    uint64_t classes[PUMP_LATENCY_CLASSES];
};
/* Of one opcode (below 64), answered in C or by whoever is behind `forward`. */
void pump_latency(struct pump *pump, uint32_t opcode, bool forwarded, struct pump_latency *out);
/* Upper bound of a class in nanoseconds. */
uint64_t pump_latency_class_ns(uint32_t index);
const char *pump_opcode_name(uint32_t opcode); /* NULL: unknown */

#endif
