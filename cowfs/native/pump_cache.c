/* cache=back: the kernel keeps what programs write, and a snapshot fetches it first.
 *
 * What may be dirty: files that are open for writing, which shared writable mappings keep them. The kernel flushes a
 * file at every close(2), and once more before it sends RELEASE, so that no other file is dirty.
 *
 * How a file is flushed: it is opened by its handle and closed. The close writes its pages, waits for all the answers
 * and sends its times. fsync(2) does the same and then makes us commit, once per file; sync_file_range(2) leaves the
 * times out, and before Linux 6.16 returns before the answers are there.
 *
 * Who does it: a process of its own, which one thread of the pump talks to, on whom neither the threads that answer
 * requests nor the event loop wait. Whoever waits for pages to be written cannot be killed. In a thread that would keep
 * the memory of a killed daemon, the rings in it, through them /dev/fuse, and thereby the connection, which alone could
 * end the waiting. */
#define _GNU_SOURCE /* open_by_handle_at, close_range, statx */
#include "pump_internal.h"
#include "ioctl.h"
#include "map.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

/* Files whose pages are sent off together before the first is waited for. */
#define BATCH_FILES 64u
/* Snapshots by ioctl that wait at a time, where no ring sets a limit. */
#define JOBS_MAX 64u
/* Entries of a ring that such snapshots leave: for a mkdir under .cowfs/snapshot, which waits for the same, of which
 * the kernel lets one through at a time; and for the pages that all of them wait for. */
#define ENTRIES_LEFT 2u

/* linux/exportfs.h (FILEID_INO64_GEN) and fuse_encode_fh() of the kernel. */
#define HANDLE_KIND 0x81
struct node_handle {
    struct file_handle head;
    uint32_t node_high, node_low, generation;
};
_Static_assert(sizeof(struct node_handle) == sizeof(struct file_handle) + 12, "the handle follows its head");

/* What the process is asked, and what it answers: 0 or a negative errno for each. */
struct flush_request {
    uint64_t device;
    uint32_t count, padding;
    uint64_t nodes[BATCH_FILES];
};
struct flush_reply {
    int32_t errors[BATCH_FILES];
};

struct flush_wait {
    struct flush_wait *next;
    int error;
    bool is_done;
};

struct snapshot_job {
    struct snapshot_job *next;
    uint64_t token, node, started_ns;
    struct cowfs_snapshot wanted;
};

struct pump_cache {
    struct pump *pump;
    char *mountpoint;
    uint64_t device;
    pid_t process;
    int socket; /* to the process */

    pthread_mutex_t writers_mutex;
    struct map writers; /* node id to how often it is open for writing */

    pthread_mutex_t mutex; /* guards what follows; nothing is waited for under it but its conditions */
    pthread_cond_t flush_wanted, flush_done, job_wanted;
    struct flush_wait *waiting;
    struct snapshot_job *jobs, **jobs_end;
    uint32_t job_count; /* also those that are being done */
    bool is_stopping;

    pthread_t flusher, worker;
    bool has_flusher, has_worker;
};

/* ---- who writes -------------------------------------------------------------------------------------------------- */

static bool opens_for_writing(uint32_t flags)
{
    return (flags & O_ACCMODE) != O_RDONLY;
}

int pump_cache_opened(struct pump *pump, uint64_t node, uint32_t flags)
{
    struct pump_cache *cache = pump->cache;
    if (cache == NULL || !opens_for_writing(flags))
        return 0;
    pthread_mutex_lock(&cache->writers_mutex);
    int error = map_reserve(&cache->writers, 1);
    if (error == 0)
        ++*map_insert(&cache->writers, node);
    pthread_mutex_unlock(&cache->writers_mutex);
    return error;
}

void pump_cache_released(struct pump *pump, uint64_t node, uint32_t flags)
{
    struct pump_cache *cache = pump->cache;
    if (cache == NULL || !opens_for_writing(flags))
        return;
    pthread_mutex_lock(&cache->writers_mutex);
    uint64_t *count = map_get(&cache->writers, node);
    if (count != NULL && --*count == 0)
        map_remove(&cache->writers, node, 0);
    pthread_mutex_unlock(&cache->writers_mutex);
}

bool pump_cache_is_written(struct pump *pump, uint64_t node)
{
    struct pump_cache *cache = pump->cache;
    if (cache == NULL)
        return false;
    pthread_mutex_lock(&cache->writers_mutex);
    bool found = map_get(&cache->writers, node) != NULL;
    pthread_mutex_unlock(&cache->writers_mutex);
    return found;
}

/* The nodes that are open for writing; free() them. */
static int writers_list(struct pump_cache *cache, uint64_t **nodes, size_t *count)
{
    *count = 0;
    pthread_mutex_lock(&cache->writers_mutex);
    *nodes = malloc((cache->writers.count + 1) * sizeof **nodes);
    if (*nodes != NULL)
        for (size_t at = 0; at < cache->writers.capacity; at++)
            if (cache->writers.slots[at].key != 0)
                (*nodes)[(*count)++] = cache->writers.slots[at].key;
    pthread_mutex_unlock(&cache->writers_mutex);
    return *nodes != NULL ? 0 : -ENOMEM;
}

/* ---- the process ------------------------------------------------------------------------------------------------- */

static int open_mount(const char *mountpoint, uint64_t device)
{
    struct statx found;
    int directory = open(mountpoint, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (directory < 0)
        return -errno;
    /* Unmounted lazily, or something is mounted over it: its files cannot be reached any more. */
    if (statx(directory, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_INO, &found) == 0 &&
        makedev(found.stx_dev_major, found.stx_dev_minor) == device)
        return directory;
    close(directory);
    return -ENXIO;
}

/* A descriptor of the file. -ESTALE: it is gone, or of a tree that a rollback replaced, and no snapshot of what is
 * there now can hold what it has. */
static int open_node(int directory, uint64_t node)
{
    union {
        struct node_handle handle;
        struct file_handle head;
    } name = {.handle = {.head = {.handle_bytes = 12, .handle_type = HANDLE_KIND},
                         .node_high = (uint32_t)(node >> 32),
                         .node_low = (uint32_t)node}};
    int file = open_by_handle_at(directory, &name.head, O_RDONLY | O_CLOEXEC);
    if (file >= 0)
        return file;
    return errno == ENOENT ? -ESTALE : -errno;
}

static void flush_files(const char *mountpoint, const struct flush_request *request, struct flush_reply *reply)
{
    int files[BATCH_FILES];
    int directory = open_mount(mountpoint, request->device);
    for (uint32_t at = 0; at < request->count; at++) {
        files[at] = directory < 0 ? directory : open_node(directory, request->nodes[at]);
        reply->errors[at] = files[at] < 0 ? files[at] : 0;
        /* Only a beginning, for all to be under way together: closing is what counts. */
        if (files[at] >= 0)
            (void)sync_file_range(files[at], 0, 0, SYNC_FILE_RANGE_WRITE);
    }
    for (uint32_t at = 0; at < request->count; at++)
        if (files[at] >= 0 && close(files[at]) < 0)
            reply->errors[at] = -errno;
    if (directory >= 0)
        close(directory);
}

/* Overwrites the command line, which was the daemon's: nobody shall take this for it. */
static void change_command_line(void)
{
    static const char name[] = "cowfs-flush";
    char text[4096] = {0};
    unsigned long area[2] = {0};
    FILE *file = fopen("/proc/self/stat", "re");
    if (file == NULL)
        return;
    size_t length = fread(text, 1, sizeof text - 1, file);
    fclose(file);
    /* arg_start and arg_end of proc(5); what follows the name, in brackets, is field 3. */
    char *rest = length != 0 ? strrchr(text, ')') : NULL, *field = rest != NULL ? strtok_r(rest, " ", &rest) : NULL;
    for (int number = 2; field != NULL && number <= 49; number++, field = strtok_r(NULL, " ", &rest))
        if (number >= 48)
            area[number - 48] = strtoul(field, NULL, 10);
    unsigned long start = area[0], end = area[1];
    if (start == 0 || end <= start)
        return;
    memset((void *)start, 0, end - start);
    memcpy((void *)start, name, sizeof name < end - start ? sizeof name : end - start - 1);
}

/* Does not return. Ends when the daemon has: nothing but that, and SIGKILL, is to end it. */
static void serve_process(const char *mountpoint, int given)
{
    struct flush_request request;
    struct flush_reply reply;
    if (dup2(given, 0) < 0 || close_range(1, ~0u, 0) != 0)
        _exit(1);
    (void)prctl(PR_SET_NAME, "cowfs-flush");
    change_command_line();
    while (recv(0, &request, sizeof request, 0) == sizeof request && request.count <= BATCH_FILES) {
        memset(&reply, 0, sizeof reply);
        flush_files(mountpoint, &request, &reply);
        if (send(0, &reply, sizeof reply, MSG_NOSIGNAL) != sizeof reply)
            break;
    }
    _exit(0);
}

/* Before the daemon has rings. */
static int start_process(struct pump_cache *cache)
{
    sigset_t all, before;
    int ends[2];
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) < 0)
        return -errno;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    cache->process = fork();
    int error = cache->process < 0 ? -errno : 0;
    if (cache->process == 0)
        serve_process(cache->mountpoint, ends[1]);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    close(ends[1]);
    cache->socket = ends[0];
    return error;
}

/* ---- flushing ---------------------------------------------------------------------------------------------------- */

static int flush_batch(const struct pump_cache *cache, const uint64_t *nodes, size_t count)
{
    struct flush_request request = {.device = cache->device, .count = (uint32_t)count};
    struct flush_reply reply;
    memcpy(request.nodes, nodes, count * sizeof *nodes);
    if (send(cache->socket, &request, sizeof request, MSG_NOSIGNAL) != sizeof request ||
        recv(cache->socket, &reply, sizeof reply, 0) != sizeof reply)
        return -EIO; /* the process is gone */
    for (size_t at = 0; at < count; at++)
        /* Of a tree that a rollback replaced: the kernel calls any refusal of pages but ENOSPC an I/O error. */
        if (reply.errors[at] != 0 && reply.errors[at] != -ESTALE &&
            !filesystem_is_stale(cache->pump->filesystem, nodes[at]))
            return reply.errors[at];
    return 0;
}

static int flush_all(struct pump_cache *cache)
{
    uint64_t *nodes;
    size_t count;
    int result = writers_list(cache, &nodes, &count);
    /* After an error the others are flushed still: it may be that of one file, and told only once. */
    for (size_t at = 0; nodes != NULL && at < count; at += BATCH_FILES) {
        int error = flush_batch(cache, nodes + at, count - at < BATCH_FILES ? count - at : BATCH_FILES);
        result = result != 0 ? result : error;
    }
    free(nodes);
    return result;
}

/* One flush does for all who asked before it began. */
static void *serve_flushes(void *argument)
{
    struct pump_cache *cache = argument;
    pthread_mutex_lock(&cache->mutex);
    for (;;) {
        while (cache->waiting == NULL && !cache->is_stopping)
            pthread_cond_wait(&cache->flush_wanted, &cache->mutex);
        struct flush_wait *taken = cache->waiting;
        cache->waiting = NULL;
        if (taken == NULL)
            break;
        pthread_mutex_unlock(&cache->mutex);
        int result = flush_all(cache);
        pthread_mutex_lock(&cache->mutex);
        for (struct flush_wait *next; taken != NULL; taken = next) {
            next = taken->next; /* theirs again once it is done */
            taken->error = result;
            taken->is_done = true;
        }
        pthread_cond_broadcast(&cache->flush_done);
    }
    pthread_mutex_unlock(&cache->mutex);
    return NULL;
}

int pump_flush(struct pump *pump)
{
    struct pump_cache *cache = pump->cache;
    if (cache == NULL)
        return 0;
    struct flush_wait wait = {.error = -ENOTCONN};
    pthread_mutex_lock(&cache->mutex);
    if (!cache->is_stopping) {
        wait.next = cache->waiting;
        cache->waiting = &wait;
        pthread_cond_signal(&cache->flush_wanted);
        while (!wait.is_done)
            pthread_cond_wait(&cache->flush_done, &cache->mutex);
    }
    pthread_mutex_unlock(&cache->mutex);
    return wait.error;
}

/* ---- snapshots by ioctl ------------------------------------------------------------------------------------------ */

static uint32_t jobs_max(const struct pump *pump)
{
    uint32_t entries = pump->uring != NULL ? pump_uring_entry_count(pump->uring) : JOBS_MAX;
    return entries > ENTRIES_LEFT ? entries - ENTRIES_LEFT : 1;
}

int pump_cache_snapshot(struct pump *pump, const struct pump_request *request, struct pump_entry *entry,
                        uint64_t started_ns)
{
    struct pump_cache *cache = pump->cache;
    struct snapshot_job *job = calloc(1, sizeof *job);
    if (job == NULL)
        return -ENOMEM;
    job->node = request->header.nodeid;
    job->started_ns = started_ns;
    memcpy(&job->wanted, request->payload, sizeof job->wanted);
    pthread_mutex_lock(&cache->mutex);
    int error = cache->is_stopping ? -EIO : cache->job_count >= jobs_max(pump) ? -EBUSY : 0;
    if (error == 0)
        error = pump_park(pump, request, entry, started_ns, &job->token);
    if (error == 0) {
        *cache->jobs_end = job;
        cache->jobs_end = &job->next;
        cache->job_count++;
        pthread_cond_signal(&cache->job_wanted);
    }
    pthread_mutex_unlock(&cache->mutex);
    if (error != 0)
        free(job);
    return error;
}

static void do_jobs(struct pump_cache *cache, struct pump_counters *counters, struct snapshot_job *job)
{
    const struct fuse_ioctl_out out = {0};
    struct pump *pump = cache->pump;
    int flushed = pump_flush(pump);
    for (struct snapshot_job *next; job != NULL; job = next) {
        next = job->next;
        int error = flushed != 0 ? flushed : pump_take_snapshot(pump, job->node, &job->wanted);
        error = pump_kernel_error(pump, FUSE_IOCTL, job->node, error);
        if (counters != NULL)
            pump_count(counters, FUSE_IOCTL, false, pump_now_ns() - job->started_ns);
        /* Before the answer, at which the next one may come. */
        pthread_mutex_lock(&cache->mutex);
        cache->job_count--;
        pthread_mutex_unlock(&cache->mutex);
        pump_unpark(pump, job->token, error, &out, sizeof out);
        free(job);
    }
}

static void *serve_jobs(void *argument)
{
    struct pump_cache *cache = argument;
    struct pump_counters *counters = pump_counters_create(cache->pump); /* NULL: these are not counted */
    pthread_mutex_lock(&cache->mutex);
    for (;;) {
        while (cache->jobs == NULL && !cache->is_stopping)
            pthread_cond_wait(&cache->job_wanted, &cache->mutex);
        struct snapshot_job *taken = cache->jobs;
        cache->jobs = NULL;
        cache->jobs_end = &cache->jobs;
        if (taken == NULL)
            break;
        pthread_mutex_unlock(&cache->mutex);
        do_jobs(cache, counters, taken);
        pthread_mutex_lock(&cache->mutex);
    }
    pthread_mutex_unlock(&cache->mutex);
    return NULL;
}

/* ---- life -------------------------------------------------------------------------------------------------------- */

int pump_cache_create(struct pump *pump, const char *mountpoint)
{
    struct pump_cache *cache = calloc(1, sizeof *cache);
    if (cache == NULL)
        return -ENOMEM;
    cache->pump = pump;
    cache->socket = -1;
    cache->process = -1;
    cache->jobs_end = &cache->jobs;
    pthread_mutex_init(&cache->writers_mutex, NULL);
    pthread_mutex_init(&cache->mutex, NULL);
    pthread_cond_init(&cache->flush_wanted, NULL);
    pthread_cond_init(&cache->flush_done, NULL);
    pthread_cond_init(&cache->job_wanted, NULL);
    pump->cache = cache; /* pump_destroy() frees it, also when this fails */
    cache->mountpoint = strdup(mountpoint);
    return cache->mountpoint != NULL ? start_process(cache) : -ENOMEM;
}

int pump_cache_start(struct pump *pump)
{
    struct pump_cache *cache = pump->cache;
    struct statx found;
    /* Nobody answers yet: DONT_SYNC asks nobody. */
    if (statx(AT_FDCWD, cache->mountpoint, AT_STATX_DONT_SYNC | AT_NO_AUTOMOUNT, STATX_INO, &found) != 0)
        return -errno;
    cache->device = makedev(found.stx_dev_major, found.stx_dev_minor);
    int error = -pthread_create(&cache->flusher, NULL, serve_flushes, cache);
    cache->has_flusher = error == 0;
    if (error == 0) {
        error = -pthread_create(&cache->worker, NULL, serve_jobs, cache);
        cache->has_worker = error == 0;
    }
    return error;
}

void pump_cache_stop(struct pump *pump)
{
    struct pump_cache *cache = pump->cache;
    if (cache == NULL)
        return;
    pthread_mutex_lock(&cache->mutex);
    cache->is_stopping = true;
    /* Nobody waits for a flush any more: what it waits for may never be answered. */
    (void)shutdown(cache->socket, SHUT_RDWR);
    pthread_cond_broadcast(&cache->flush_wanted);
    pthread_cond_broadcast(&cache->job_wanted);
    pthread_mutex_unlock(&cache->mutex);
    if (cache->has_worker)
        pthread_join(cache->worker, NULL);
    if (cache->has_flusher)
        pthread_join(cache->flusher, NULL);
    cache->has_worker = cache->has_flusher = false;
}

void pump_cache_destroy(struct pump *pump)
{
    struct pump_cache *cache = pump->cache;
    if (cache == NULL)
        return;
    pump->cache = NULL;
    if (cache->socket >= 0)
        close(cache->socket); /* the process ends at that */
    /* It may have to wait for the end of the connection, which is not here yet: then it is left to init. */
    if (cache->process > 0)
        (void)waitpid(cache->process, NULL, WNOHANG);
    pthread_cond_destroy(&cache->job_wanted);
    pthread_cond_destroy(&cache->flush_done);
    pthread_cond_destroy(&cache->flush_wanted);
    pthread_mutex_destroy(&cache->mutex);
    pthread_mutex_destroy(&cache->writers_mutex);
    map_free(&cache->writers);
    free(cache->mountpoint);
    free(cache);
}
