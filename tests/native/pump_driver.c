/* A mount without Python, for builds with sanitizers: the pump at work while the tree underneath changes.
 *
 *     pump_driver POOL MOUNTPOINT uring|device through|back ROLLBACKS off|lz4|zstd
 *
 * POOL is a file (made into a pool, whatever it held), or "-" for memory. Mounts, says "mounted" on the standard
 * output, and until the mount ends or SIGTERM comes takes snapshots, deletes old ones, makes checkpoints and reads the
 * figures; with ROLLBACKS 1 it rolls back every now and then, too. What the pump leaves to others is answered with
 * ENOENT; on SIGUSR1 it is answered no more, which "closed" says. Ends with 0 when everything was closed and the tree
 * is right, with 3 when io_uring cannot be had, otherwise with 1 and a message. */
#define _GNU_SOURCE /* ppoll */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "cowfs/native/pump.h"
#include "cowfs/native/pump_protocol.h"

#define MEMORY_POOL_SIZE_BYTES (256u << 20)
#define DEVICE_THREADS 4u
#define SNAPSHOTS_MAX 12u
#define MESSAGE_LENGTH_MAX (PUMP_PAYLOAD_LENGTH_MAX + 8192u)
#define LISTING 16u
#define MILLISECOND_NS 1000000

/* linux/fuse.h, enum fuse_notify_code; since protocol 7.44. */
enum { NOTIFY_INC_EPOCH = 8 };

struct mount {
    struct store *store;
    struct filesystem *filesystem;
    struct pump *pump;
    const char *mountpoint;
    uint64_t volume_id;
    int device;
    int ours, theirs; /* the pair: the pump's end and that of serve() */
    atomic_bool ending;
    atomic_uint snapshots, rollbacks, forwarded;
};

static void fail(const char *what, int result)
{
    fprintf(stderr, "pump_driver: %s: %s (%d)\n", what, strerror(result < 0 ? -result : result), result);
    exit(1);
}

/* 0, or one of the errors that come of others working beside: -ENOENT, -EBUSY, -ESTALE, -ENOSPC. */
static int expect(const char *what, int result)
{
    if (result != 0 && result != -ENOENT && result != -EBUSY && result != -ESTALE && result != -ENOSPC)
        fail(what, result);
    return result;
}

static void pause_ms(unsigned milliseconds)
{
    struct timespec time = {milliseconds / 1000, (long)(milliseconds % 1000) * MILLISECOND_NS};
    (void)nanosleep(&time, NULL);
}

/* ---- what works beside the pump -------------------------------------------------------------------------------- */

/* Looks at a snapshot as a request would, and forgets what that counted. */
static void list_root(struct mount *self, uint64_t snapshot_id)
{
    struct filesystem_entry entries[LISTING];
    uint64_t root;
    size_t count = 0;
    int result = expect("view", filesystem_view_of_snapshot(self->filesystem, snapshot_id, &root));
    if (result == 0)
        result = expect("list", filesystem_readdir(self->filesystem, root, 0, LISTING, true, entries, &count));
    for (size_t at = 0; result == 0 && at < count; at++)
        expect("forget", filesystem_forget(self->filesystem, entries[at].attributes.node, 1));
}

static void *take_snapshots(void *argument)
{
    struct mount *self = argument;
    while (!atomic_load(&self->ending)) {
        struct store_snapshot snapshot;
        struct store_volume volume;
        char name[32];
        (void)snprintf(name, sizeof name, "s%u", atomic_fetch_add(&self->snapshots, 1));
        if (expect("snapshot", store_snapshot_create(self->store, self->volume_id, name, &snapshot)) == 0)
            list_root(self, snapshot.id);
        int result = store_volume_get(self->store, self->volume_id, &volume);
        if (result != 0)
            fail("volume", result);
        if (volume.snapshot_count > SNAPSHOTS_MAX &&
            expect("oldest", store_snapshot_next(self->store, self->volume_id, 0, &snapshot)) == 0 &&
            expect("delete", store_snapshot_delete(self->store, snapshot.id)) == 0)
            filesystem_forget_snapshot(self->filesystem, snapshot.id);
        pause_ms(15);
    }
    return NULL;
}

/* Errors say that the kernel has nothing cached, or that the mount is gone. */
static void notify(const struct mount *self, int code, const void *body, size_t length)
{
    struct fuse_out_header header = {.len = (uint32_t)(sizeof header + length), .error = code};
    struct iovec parts[] = {{&header, sizeof header}, {(void *)(uintptr_t)body, length}};
    if (writev(self->device, parts, 2) < 0 && errno != ENOENT && errno != ENODEV && errno != ENOTCONN)
        fail("notify", -errno);
}

static void invalidate_inode(const struct mount *self, uint64_t node)
{
    const struct fuse_notify_inval_inode_out out = {.ino = node};
    notify(self, FUSE_NOTIFY_INVAL_INODE, &out, sizeof out);
}

static void *roll_back(void *argument)
{
    struct mount *self = argument;
    while (!atomic_load(&self->ending)) {
        struct store_snapshot snapshot, guard;
        struct filesystem_nodes open, held = {0};
        uint64_t cursor = 0;
        uint32_t old_view;
        char name[32];
        pause_ms(250);
        if (expect("oldest", store_snapshot_next(self->store, self->volume_id, 0, &snapshot)) != 0)
            continue;
        (void)snprintf(name, sizeof name, "guard%u", atomic_load(&self->rollbacks));
        int result = expect("roll back", store_rollback(self->store, self->volume_id, snapshot.id, name, &guard));
        if (result != 0)
            continue;
        result = filesystem_rolled_back(self->filesystem, self->volume_id, &open, &old_view);
        do
            result = result == 0 ? filesystem_held_nodes(self->filesystem, old_view, &cursor, &held) : result;
        while (result == 0 && cursor != 0);
        if (result != 0)
            fail("rolled back", result);
        notify(self, NOTIFY_INC_EPOCH, NULL, 0);
        invalidate_inode(self, FILESYSTEM_ROOT_INODE);
        for (size_t at = 0; at < open.count; at++)
            invalidate_inode(self, open.ids[at]);
        for (size_t at = 0; at < held.count; at++)
            invalidate_inode(self, held.ids[at]);
        free(open.ids);
        free(held.ids);
        atomic_fetch_add(&self->rollbacks, 1);
    }
    return NULL;
}

static void *make_checkpoints(void *argument)
{
    struct mount *self = argument;
    while (!atomic_load(&self->ending)) {
        pause_ms(150);
        expect("checkpoint", store_checkpoint(self->store));
    }
    return NULL;
}

static void *read_figures(void *argument)
{
    struct mount *self = argument;
    while (!atomic_load(&self->ending)) {
        struct pump_latency latency;
        for (uint32_t which = 0; which < 2 * PUMP_OPCODE_COUNT; which++)
            pump_latency(self->pump, which / 2, which % 2 != 0, &latency);
        (void)pump_open_files(self->pump);
        pause_ms(5);
    }
    return NULL;
}

/* Whoever is behind `forward`, until its socket is shut down. */
static void *serve(void *argument)
{
    struct mount *self = argument;
    uint8_t *message = malloc(MESSAGE_LENGTH_MAX);
    if (message == NULL)
        fail("memory", -ENOMEM);
    for (;;) {
        struct fuse_in_header header;
        ssize_t length = recv(self->theirs, message, MESSAGE_LENGTH_MAX, 0);
        if (length == 0)
            break;
        if (length < (ssize_t)sizeof header)
            fail("a forwarded request", length < 0 ? -errno : -EPROTO);
        memcpy(&header, message, sizeof header);
        if (header.len != (uint32_t)length)
            fail("the length of a forwarded request", -EPROTO);
        if (header.opcode == FUSE_INIT)
            continue;
        struct fuse_out_header out = {.len = sizeof out, .error = -ENOENT, .unique = header.unique};
        if (send(self->theirs, &out, sizeof out, MSG_NOSIGNAL) < 0 && errno != EPIPE)
            fail("answer a forwarded request", -errno);
        atomic_fetch_add(&self->forwarded, 1);
    }
    free(message);
    return NULL;
}

static pthread_t start(void *(*function)(void *), struct mount *self)
{
    pthread_t thread;
    int error = pthread_create(&thread, NULL, function, self);
    if (error != 0)
        fail("thread", -error);
    return thread;
}

/* ---- a medium that is slow now and then ------------------------------------------------------------------------ */

/* Whoever answers an fsync depends on how long the last ones took. */
static struct storage_operations slow_operations;
static int (*quick_flush)(struct storage *storage);

static int slow_flush(struct storage *storage)
{
    struct timespec now;
    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    if (now.tv_nsec % (400 * MILLISECOND_NS) >= 200 * MILLISECOND_NS)
        pause_ms(1);
    return quick_flush(storage);
}

static void slow_down(struct storage *storage)
{
    slow_operations = *storage->operations;
    quick_flush = slow_operations.flush;
    slow_operations.flush = slow_flush;
    storage->operations = &slow_operations;
}

/* ---- the mount --------------------------------------------------------------------------------------------------- */

static void compress(struct mount *self, const char *how)
{
    bool lz4 = strcmp(how, "lz4") == 0, zstd = strcmp(how, "zstd") == 0;
    int result = filesystem_set_compression(self->filesystem, 0, lz4 ? 1 : zstd ? 2 : 0, 1);
    if (result == 0 && (lz4 || zstd))
        result = filesystem_gather_start(self->filesystem);
    if (result != 0)
        fail("compression", result);
}

static void open_pool(const char *path, struct mount *self)
{
    /* Small, so that eviction, flushing and checkpoints happen all the time. */
    const struct store_options options = {
        .cache_bytes_max = 4u << 20,
        .dirty_bytes_max = 2u << 20,
        .buffer_bytes_max = 4u << 20,
        .commit_interval_ms = 20,
    };
    const struct store_parameters parameters = {0};
    struct store_failure failure = {{0}};
    struct storage *storage;
    int result = strcmp(path, "-") == 0 ? storage_open_memory(MEMORY_POOL_SIZE_BYTES, &storage)
                                        : storage_open_file(path, false, &storage);
    if (result != 0)
        fail(path, result);
    slow_down(storage);
    result = store_format(storage, &parameters, &failure);
    if (result == 0)
        result = store_open(storage, &options, &self->store, &failure);
    if (result != 0)
        fail(failure.message, result);
    result = store_volume_create(self->store, "main", &self->volume_id);
    if (result == 0)
        result = filesystem_open(self->store, self->volume_id, false, &self->filesystem);
    if (result != 0)
        fail("make a file system", result);
}

/* As mount_as_root() in cowfs/mounting.py has it. */
static void mount_device(const char *source, struct mount *self)
{
    char data[128];
    self->device = open("/dev/fuse", O_RDWR | O_CLOEXEC);
    if (self->device < 0)
        fail("/dev/fuse", -errno);
    (void)snprintf(data, sizeof data,
                   "fd=%d,rootmode=%o,user_id=0,group_id=0,default_permissions,allow_other,max_read=%u", self->device,
                   (unsigned)S_IFDIR, PUMP_PAYLOAD_LENGTH_MAX);
    if (mount(source, self->mountpoint, "fuse.cowfs", MS_NOSUID | MS_NODEV, data) != 0)
        fail("mount", -errno);
}

static void make_pump(struct mount *self, bool uring, bool writeback)
{
    int ends[2];
    char reason[128];
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) < 0)
        fail("socketpair", -errno);
    self->ours = ends[0];
    self->theirs = ends[1];
    const struct pump_options options = {
        .device = self->device,
        .forward = self->ours,
        .uring = uring,
        .awake = true,
        .writeback = writeback,
        .threads = DEVICE_THREADS,
        .reserved = ".cowfs",
        .mountpoint = self->mountpoint,
    };
    int result = pump_create(self->filesystem, &options, &self->pump, reason);
    if (result != 0) {
        (void)umount2(self->mountpoint, MNT_DETACH);
        fail("pump", result);
    }
    if (uring && !pump_uses_uring(self->pump)) {
        (void)umount2(self->mountpoint, MNT_DETACH);
        fprintf(stderr, "pump_driver: no io_uring: %s\n", reason);
        exit(3);
    }
}

/* Until the mount has ended, or a signal has come; then the mount is taken away. */
static void wait_for_the_end(struct mount *self, const sigset_t *signals)
{
    struct pollfd ready = {.fd = pump_event_descriptor(self->pump), .events = POLLIN};
    for (;;) {
        const struct timespec now = {0}, often = {0, 50 * MILLISECOND_NS};
        struct pump_event event;
        int number = sigtimedwait(signals, NULL, &now);
        if (number == SIGUSR1) {
            (void)shutdown(self->theirs, SHUT_RDWR);
            printf("closed\n");
            fflush(stdout);
        } else if (number > 0) {
            (void)umount2(self->mountpoint, MNT_DETACH);
            return;
        }
        if (ppoll(&ready, 1, &often, NULL) <= 0 || read(ready.fd, &event, sizeof event) != sizeof event)
            continue;
        if (event.kind == PUMP_EVENT_ENDED)
            return;
        (void)umount2(self->mountpoint, MNT_DETACH);
        fprintf(stderr, "pump_driver: event %u, %s, node %#llx\n", event.kind,
                event.opcode == 0 ? "no request" : pump_opcode_name(event.opcode), (unsigned long long)event.node);
        fail("an event", event.error);
    }
}

static void print_problem(void *argument, const char *message)
{
    (void)argument;
    fprintf(stderr, "pump_driver: %s\n", message);
}

static void close_all(struct mount *self)
{
    int result = filesystem_release_all(self->filesystem);
    if (result != 0)
        fail("release", result);
    int64_t problems = filesystem_check(self->filesystem, self->volume_id, print_problem, NULL);
    if (problems != 0)
        fail("the tree is damaged", problems < 0 ? (int)problems : -EUCLEAN);
    filesystem_close(self->filesystem);
    result = store_close(self->store);
    if (result != 0)
        fail("close", result);
}

int main(int argument_count, char **arguments)
{
    struct mount mount = {0};
    sigset_t signals;
    if (argument_count != 7) {
        fprintf(stderr, "usage: pump_driver POOL MOUNTPOINT uring|device through|back ROLLBACKS off|lz4|zstd\n");
        return 2;
    }
    bool rolls_back = strcmp(arguments[5], "0") != 0;
    sigemptyset(&signals);
    sigaddset(&signals, SIGTERM);
    sigaddset(&signals, SIGUSR1);
    pthread_sigmask(SIG_BLOCK, &signals, NULL);
    open_pool(arguments[1], &mount);
    compress(&mount, arguments[6]);
    mount.mountpoint = arguments[2];
    mount_device(arguments[1], &mount);
    make_pump(&mount, strcmp(arguments[3], "uring") == 0, strcmp(arguments[4], "back") == 0);

    pthread_t server = start(serve, &mount);
    int result = pump_start(mount.pump);
    if (result != 0)
        fail("start", result);
    printf("mounted\n");
    fflush(stdout);
    void *(*const works[])(void *) = {take_snapshots, make_checkpoints, read_figures, rolls_back ? roll_back : NULL};
    pthread_t threads[sizeof works / sizeof *works];
    size_t count = 0;
    while (count < sizeof works / sizeof *works && works[count] != NULL) {
        threads[count] = start(works[count], &mount);
        count++;
    }
    wait_for_the_end(&mount, &signals);
    /* A notification may wait for requests: the pump goes on until nobody sends any. */
    atomic_store(&mount.ending, true);
    while (count > 0)
        (void)pthread_join(threads[--count], NULL);
    pump_stop(mount.pump);
    (void)shutdown(mount.theirs, SHUT_RDWR);
    (void)pthread_join(server, NULL);
    close(mount.device);
    close(mount.ours);
    close(mount.theirs);
    close_all(&mount);
    pump_destroy(mount.pump);
    printf("%u snapshots, %u rollbacks, %u forwarded\n", atomic_load(&mount.snapshots), atomic_load(&mount.rollbacks),
           atomic_load(&mount.forwarded));
    return 0;
}
