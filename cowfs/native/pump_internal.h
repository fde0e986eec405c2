/* What the parts of the pump share. */
#ifndef COWFS_PUMP_INTERNAL_H
#define COWFS_PUMP_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>

#include "pump.h"
#include "pump_protocol.h"

/* Node ids of this view are virtual: whoever is behind `forward` made them. */
#define PUMP_VIRTUAL_VIEW ((UINT64_C(1) << 23) - 1)
#define PUMP_INODE_MASK ((UINT64_C(1) << FILESYSTEM_VIEW_SHIFT) - 1)
#define PUMP_VALID_S 3600u
#define PUMP_FORWARDS_MAX 4096u
#define PUMP_DEVICE_THREADS_MAX 16u
#define PUMP_MESSAGE_LENGTH_MAX (PUMP_PAYLOAD_LENGTH_MAX + 4096u)

/* ---- requests -------------------------------------------------------------------------------------------------- */

/* A request in the parts that both transports give: the operation's own structure, then names or bytes. */
struct pump_request {
    struct fuse_in_header header;
    const uint8_t *argument; /* as long as pump_argument_length() says, checked */
    const uint8_t *payload;
    size_t payload_length;
};

/* Where the answer goes. `bytes` may be the memory that the request's payload is in: a handler has used that up before
 * it writes. */
struct pump_answer {
    uint8_t *bytes;
    size_t room;
    size_t length;
    int error; /* 0 or a negative errno */
};

enum pump_outcome {
    PUMP_ANSWERED,
    PUMP_SILENT,  /* the kernel expects no answer */
    PUMP_FORWARD, /* somebody else answers */
    PUMP_SNAPSHOT, /* a snapshot for which the kernel's cache has to be flushed first (pump_cache_snapshot()) */
    PUMP_COMMIT,  /* nothing is left to do but an fsync of the node: the transport chooses when and by whom */
};

struct pump;
struct pump_entry;
enum pump_outcome pump_handle(struct pump *pump, const struct pump_request *request, struct pump_answer *answer);
/* Length of the structure that a request of this opcode begins with; 0 for names alone and unknown opcodes. */
size_t pump_argument_length(uint32_t opcode);
/* Of FSYNC and FSYNCDIR. */
void pump_commit(struct pump *pump, const struct pump_request *request, struct pump_answer *answer);
/* What the kernel may know of an error; damage is told as an event. */
int pump_kernel_error(struct pump *pump, uint32_t opcode, uint64_t node, int error);
/* Hands a request to whom its outcome, PUMP_FORWARD or PUMP_SNAPSHOT, names. A negative errno: the caller answers. */
int pump_hand_over(struct pump *pump, enum pump_outcome outcome, const struct pump_request *request,
                   struct pump_entry *entry, uint64_t started_ns);

/* ---- handlers (pump_names.c, pump_inodes.c, pump_files.c, pump_extra.c) ------------------------------------------ */

typedef enum pump_outcome (*pump_handler)(struct pump *pump, const struct pump_request *request,
                                          struct pump_answer *answer);
#define PUMP_HANDLER(name)                                                                                             \
    enum pump_outcome name(struct pump *pump, const struct pump_request *request, struct pump_answer *answer)

PUMP_HANDLER(pump_lookup);
PUMP_HANDLER(pump_create_file);
PUMP_HANDLER(pump_mknod);
PUMP_HANDLER(pump_mkdir);
PUMP_HANDLER(pump_symlink);
PUMP_HANDLER(pump_link);
PUMP_HANDLER(pump_unlink);
PUMP_HANDLER(pump_rmdir);
PUMP_HANDLER(pump_rename);
PUMP_HANDLER(pump_rename_flags);
PUMP_HANDLER(pump_readlink);
PUMP_HANDLER(pump_opendir);
PUMP_HANDLER(pump_readdirplus);
PUMP_HANDLER(pump_releasedir);
PUMP_HANDLER(pump_fsyncdir);
PUMP_HANDLER(pump_forget);
PUMP_HANDLER(pump_forget_batch);
PUMP_HANDLER(pump_getattr);
PUMP_HANDLER(pump_setattr);
PUMP_HANDLER(pump_statx);
PUMP_HANDLER(pump_statfs);
PUMP_HANDLER(pump_getxattr);
PUMP_HANDLER(pump_setxattr);
PUMP_HANDLER(pump_listxattr);
PUMP_HANDLER(pump_removexattr);
PUMP_HANDLER(pump_open);
PUMP_HANDLER(pump_release);
PUMP_HANDLER(pump_read);
PUMP_HANDLER(pump_write);
PUMP_HANDLER(pump_fsync);
PUMP_HANDLER(pump_fallocate);
PUMP_HANDLER(pump_lseek);
PUMP_HANDLER(pump_copy_file_range);
PUMP_HANDLER(pump_copy_file_range_64);
PUMP_HANDLER(pump_tmpfile);
PUMP_HANDLER(pump_ioctl);

static inline bool pump_is_virtual(uint64_t node)
{
    return node >> FILESYSTEM_VIEW_SHIFT == PUMP_VIRTUAL_VIEW;
}

/* A NUL-terminated name at the start of `bytes`; what follows it begins at *used. -EINVAL when there is none. */
int pump_name(const uint8_t *bytes, size_t length, struct filesystem_name *name, size_t *used);
/* -ENAMETOOLONG, or -EPERM where nobody may make this name. */
int pump_new_name_check(const struct pump *pump, uint64_t parent, struct filesystem_name name);
enum pump_outcome pump_fail(struct pump_answer *answer, int error);
enum pump_outcome pump_succeed(struct pump_answer *answer, const void *bytes, size_t length);
void pump_attributes(struct pump *pump, const struct filesystem_attributes *attributes, struct fuse_attr *out);
/* For how long the kernel may keep attributes. */
uint64_t pump_valid_s(struct pump *pump, uint64_t node);
enum pump_outcome pump_answer_attributes(struct pump *pump, int status, const struct filesystem_attributes *attributes,
                                         struct pump_answer *answer);
/* Without a time of birth. */
void pump_statx_fill(const struct fuse_attr *plain, struct pump_statx *out);
void pump_entry(struct pump *pump, const struct filesystem_attributes *attributes, struct fuse_entry_out *out);

/* What CREATE and TMPFILE answer. */
struct pump_created {
    struct fuse_entry_out entry;
    struct fuse_open_out open;
};
/* `flags` are open(2)'s. */
enum pump_outcome pump_answer_created(struct pump *pump, const struct filesystem_attributes *attributes, uint32_t flags,
                                      struct pump_answer *answer);

/* ---- counters (pump_statistics.c) -------------------------------------------------------------------------------- */

/* Written by one thread each. */
struct pump_counter {
    _Atomic uint64_t count, total_ns;
    _Atomic uint32_t classes[PUMP_LATENCY_CLASSES];
};
struct pump_counters {
    struct pump_counter answered[PUMP_OPCODE_COUNT];
    struct pump_counter forwarded[PUMP_OPCODE_COUNT];
};
uint64_t pump_now_ns(void);
void pump_count(struct pump_counters *counters, uint32_t opcode, bool forwarded, uint64_t elapsed_ns);

/* ---- forwarding (pump_forward.c) --------------------------------------------------------------------------------- */

/* A request that is not with its transport's thread: with whoever is behind `forward`, or with a worker. */
struct pump_forward {
    uint64_t unique;
    uint64_t started_ns;
    uint32_t opcode;
    uint32_t generation;
    struct pump_entry *entry; /* of a ring; NULL: /dev/fuse */
    bool used;
    uint32_t next_free;
};

int pump_forward_start(struct pump *pump);
/* Hands a request over. A negative errno: it was not, and the caller answers. */
int pump_forward_request(struct pump *pump, const struct pump_request *request, struct pump_entry *entry,
                         uint64_t started_ns);

/* Keeps a request for an answer by pump_unpark(), from any thread. A negative errno: it is not kept, and the caller
 * answers. */
int pump_park(struct pump *pump, const struct pump_request *request, struct pump_entry *entry, uint64_t started_ns,
              uint64_t *token);
void pump_unpark(struct pump *pump, uint64_t token, int error, const void *bytes, size_t length);

/* ---- the kernel's cache of written pages (pump_cache.c) ---------------------------------------------------------- */

int pump_cache_create(struct pump *pump, const char *mountpoint);
int pump_cache_start(struct pump *pump);
/* Whoever waits for a flush gets an error. */
void pump_cache_stop(struct pump *pump);
void pump_cache_destroy(struct pump *pump);
/* open(2) and its end; `flags` are open(2)'s. Without the cache nothing. -ENOMEM: it must not be opened. */
int pump_cache_opened(struct pump *pump, uint64_t node, uint32_t flags);
void pump_cache_released(struct pump *pump, uint64_t node, uint32_t flags);
/* Whether the kernel may hold written pages of it. */
bool pump_cache_is_written(struct pump *pump, uint64_t node);
/* Takes over a request with the outcome PUMP_SNAPSHOT. A negative errno: it was not, and the caller answers. */
int pump_cache_snapshot(struct pump *pump, const struct pump_request *request, struct pump_entry *entry,
                        uint64_t started_ns);

struct cowfs_snapshot;
int pump_take_snapshot(struct pump *pump, uint64_t node, const struct cowfs_snapshot *wanted);

/* ---- transports -------------------------------------------------------------------------------------------------- */

int pump_device_start(struct pump *pump);
/* Writes an answer to /dev/fuse. Errors that only say that nobody waits any more are none. */
int pump_device_answer(struct pump *pump, uint64_t unique, int error, const void *bytes, size_t length);

struct pump_uring;
/* Makes the rings; 0 also says that the kernel lets us. */
int pump_uring_create(struct pump *pump, struct pump_uring **out);
int pump_uring_start(struct pump_uring *uring);
/* Of each ring: requests that it holds at a time. */
uint32_t pump_uring_entry_count(const struct pump_uring *uring);
/* Lets the threads that do not look at the pump's stop descriptor end. */
void pump_uring_stop(struct pump_uring *uring);
void pump_uring_destroy(struct pump_uring *uring);
/* From any thread: the answer of an entry is in its memory (pump_entry_answer()). */
void pump_uring_answered(struct pump_entry *entry);
struct pump_answer *pump_entry_answer(struct pump_entry *entry);
/* For whoever an entry was handed to: its place in a list, the fsync it asks for (`done`: one has been made since all
 * of a list arrived), whatever else it asks for, and its latency. */
struct pump_entry **pump_entry_link(struct pump_entry *entry);
void pump_entry_commit(struct pump_entry *entry, bool *done);
void pump_entry_handle(struct pump_entry *entry);
void pump_entry_count(const struct pump_entry *entry, struct pump_counters *counters);

/* Between the requests that one thread answers. */
struct pump_gap {
    uint64_t last_ns, smoothed_ns;
};
#define PUMP_GAP_MAX_NS 5000000u
/* How much the last one weighs in the smoothed one. */
#define PUMP_GAP_SMOOTHING 8u
static inline void pump_gap_note(struct pump_gap *gap, uint64_t now_ns)
{
    uint64_t length_ns = now_ns - gap->last_ns;
    length_ns = length_ns < PUMP_GAP_MAX_NS ? length_ns : PUMP_GAP_MAX_NS;
    gap->smoothed_ns = gap->smoothed_ns - gap->smoothed_ns / PUMP_GAP_SMOOTHING + length_ns / PUMP_GAP_SMOOTHING;
    gap->last_ns = now_ns;
}

struct pump_awake;
/* On failure too, *out may have to be destroyed. */
int pump_awake_start(struct pump *pump, struct pump_awake **out);
/* For each request, after it was noted in the gap of its thread. */
void pump_awake_note(struct pump_awake *awake, const struct pump_gap *gap);
void pump_awake_stop(struct pump_awake *awake);
void pump_awake_destroy(struct pump_awake *awake);

struct pump_workers;
/* On failure too, *out may have to be destroyed. */
int pump_workers_start(struct pump *pump, struct pump_workers **out);
void pump_workers_commit(struct pump_workers *workers, struct pump_entry *entry);
void pump_workers_read(struct pump_workers *workers, struct pump_entry *entry);
void pump_workers_write(struct pump_workers *workers, struct pump_entry *entry);
void pump_workers_stop(struct pump_workers *workers);
void pump_workers_destroy(struct pump_workers *workers);

/* ---- the pump ---------------------------------------------------------------------------------------------------- */

struct pump {
    struct filesystem *filesystem;
    struct pump_options options;
    char reserved[FILESYSTEM_NAME_LENGTH_MAX + 1];
    size_t reserved_length;
    uint32_t protocol_minor;
    int stop_descriptor; /* an eventfd, readable for ever once the pump stops */
    int event_read, event_write;
    atomic_bool stopping, ended;
    atomic_bool polling; /* a thread of /dev/fuse looks for requests without sleeping */
    atomic_uint_fast64_t events_lost;
    atomic_int_fast64_t open_files;
    atomic_uint_fast64_t commit_ns; /* what an fsync takes, smoothed */
    struct pump_uring *uring;       /* NULL: /dev/fuse alone */
    struct pump_awake *awake;       /* NULL: CPUs may halt at any time */
    struct pump_cache *cache;       /* NULL: a write has arrived when write(2) returns */

    pthread_t *threads;
    size_t thread_count;

    pthread_mutex_t forward_mutex; /* guards what follows */
    struct pump_forward *forwards;
    uint32_t forward_free;
    bool forward_closed; /* nobody answers any more */

    pthread_mutex_t counters_mutex; /* guards the list, not what it points to */
    struct pump_counters **counters;
    size_t counters_count;
};

struct pump_counters *pump_counters_create(struct pump *pump);
void pump_event(struct pump *pump, enum pump_event_kind kind, uint32_t opcode, uint64_t node, int error);
/* The connection has ended: said once. */
void pump_ended(struct pump *pump);
int pump_thread_start(struct pump *pump, void *(*function)(void *), void *argument);

#endif
