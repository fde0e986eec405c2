/* Makes the n-th allocation of a pump's life fail, for n = 1, 2, 3 … until that life completes; each once alone, and
 * once with all later ones. Allocations are those of memory, of threads, of rings and of descriptors, from the pump's
 * beginning to its end, in the pump and in the verbs and the store below it. For builds with AddressSanitizer.
 *
 *     pump_allocation_driver device|uring through|back STEP
 *
 * There is no mount: pretended_kernel.h asks and counts the answers. A pump that cannot begin says so, and another can.
 * Each request has one answer, the right one or an error that says what is the matter; after one allocation that
 * failed alone no more than one request hears of it, unless the store has stopped. In the end lookups, open files,
 * descriptors and mappings are what they were, and what an fsync promised is in the pool. Ends with 0, with 1 and a
 * message, or with 3 where there is no io_uring. */
#define _GNU_SOURCE /* pipe2 */
#include <dirent.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "cowfs/native/ioctl.h"
#include "failing_resources.h"
#include "lasting_storage.h"
#include "pretended_kernel.h"

#define POOL_SIZE_BYTES (16u << 20)
#define FILES 8u
#define CUT (FILES - 1) /* like the first it is there before the pump */
#define LARGE_BYTES (300u << 10)
#define NODES_MAX 256u
#define ROOT FILESYSTEM_ROOT_INODE
#define ASK(opcode, node, in, payload, length) kernel_ask(opcode, node, &(in), sizeof(in), payload, length)

/* ---- what is expected -------------------------------------------------------------------------------------------- */

static struct life {
    struct store *store;
    struct filesystem *filesystem;
    struct pump *pump;
    uint64_t volume_id;
    int64_t open_files;
    /* By number of the file: what fills it, as last acknowledged, and as was durable; 0: not there. */
    uint8_t acknowledged[FILES], durable[FILES];
    bool failed[FILES];  /* its last change: it may be there, not at all, or in part */
    bool changed[FILES]; /* since the last commit: either may be found */
    uint32_t refused;    /* requests that heard an error */
    struct node {
        uint64_t id, lookups;
    } nodes[NODES_MAX];
    uint32_t node_count;
} life;

static bool wants_uring, wants_back;
static unsigned long current_index, verified, refused, restarts;

static void fail(const char *what, int result)
{
    fprintf(stderr, "pump_allocation_driver: allocation %lu%s: %s: %s (%d)\n", current_index,
            atomic_load(&for_ever) ? " and all later" : "", what, strerror(result < 0 ? -result : result), result);
    _exit(1);
}

/* Whether it succeeded. */
static bool expect(const char *what, int result)
{
    bool excused = result == -ENOMEM || result == -EIO || result == -EROFS ||
                   (result == -ENOTCONN && kernel.has_ended);
    if (result == 0)
        return true;
    if (!atomic_load(&has_failed) || !excused)
        fail(what, result);
    if (result != -ENOTCONN && ++life.refused > 1 && !atomic_load(&for_ever) &&
        !filesystem_has_failed(life.filesystem))
        fail("a second request hears of one failure", result);
    return false;
}

static void report(void *argument, const char *message)
{
    (void)argument;
    fprintf(stderr, "pump_allocation_driver: check: %s\n", message);
}

/* ---- requests, and what the kernel keeps of their answers -------------------------------------------------------- */

static uint8_t large[LARGE_BYTES];
static const struct fuse_getattr_in getattr;

static void take_body(void *out, size_t length)
{
    if (kernel_answer_length < length)
        fail("a short answer", -EPROTO);
    memcpy(out, kernel_answer, length);
}

static void looked_up(uint64_t id)
{
    uint32_t at = 0;
    while (at < life.node_count && life.nodes[at].id != id)
        at++;
    if (at == NODES_MAX)
        fail("nodes", -ENOSPC);
    life.node_count += at == life.node_count;
    life.nodes[at].id = id;
    life.nodes[at].lookups++;
}

static void forget(uint64_t id)
{
    const struct fuse_forget_in in = {.nlookup = 1};
    if (id == 0 || id == KERNEL_VIRTUAL_NODE || !kernel_send(FUSE_FORGET, id, &in, sizeof in, NULL, 0))
        return;
    for (uint32_t at = 0; at < life.node_count; at++)
        life.nodes[at].lookups -= life.nodes[at].id == id;
}

/* The node that an answer leads to; 0: there is none. */
static uint64_t take_entry(void)
{
    struct fuse_entry_out out;
    take_body(&out, sizeof out);
    if (out.nodeid != 0 && out.nodeid != KERNEL_VIRTUAL_NODE)
        looked_up(out.nodeid);
    return out.nodeid;
}

/* Of a name with its NUL. 0: there is none, or an error. */
static uint64_t look_up(uint64_t parent, const char *name)
{
    if (!expect("lookup", kernel_ask(FUSE_LOOKUP, parent, NULL, 0, name, strlen(name) + 1)))
        return 0;
    return take_entry();
}

static const char *name_of(unsigned number)
{
    static char text[16];
    snprintf(text, sizeof text, "file %u", number);
    return text;
}

static size_t length_of(unsigned number)
{
    return number % 4 == 0 ? 100 : number % 4 == 1 ? 5000 : number % 4 == 2 ? 20000 : LARGE_BYTES;
}

/* A file that was acknowledged is there. */
static uint64_t look_up_file(unsigned number)
{
    uint32_t before = life.refused;
    uint64_t node = look_up(ROOT, name_of(number));
    if (node == 0 && life.refused == before && !kernel.has_ended && life.acknowledged[number] != 0 &&
        !life.failed[number])
        fail("a file is gone", -ENOENT);
    return node;
}

/* With the handle of an open file in *handle. */
static bool open_node(uint64_t node, uint32_t flags, uint64_t *handle)
{
    const struct fuse_open_in in = {.flags = flags};
    struct fuse_open_out out;
    if (!expect("open", ASK(FUSE_OPEN, node, in, NULL, 0)))
        return false;
    take_body(&out, sizeof out);
    *handle = out.fh;
    life.open_files++;
    return true;
}

static void release(uint64_t node, uint64_t handle, uint32_t flags)
{
    const struct fuse_release_in in = {.fh = handle, .flags = flags};
    if (expect("release", ASK(FUSE_RELEASE, node, in, NULL, 0)))
        life.open_files--;
}

static uint64_t create(uint32_t opcode, const char *name, uint64_t *handle)
{
    const struct fuse_create_in in = {.flags = O_RDWR, .mode = S_IFREG | 0644};
    struct fuse_open_out out;
    if (!expect("create", ASK(opcode, ROOT, in, name, strlen(name) + 1)))
        return 0;
    uint64_t node = take_entry();
    memcpy(&out, kernel_answer + sizeof(struct fuse_entry_out), sizeof out);
    *handle = out.fh;
    life.open_files++;
    return node;
}

static size_t piece_of(size_t at, size_t length)
{
    return kernel.uring || length - at < KERNEL_LENGTH_MAX ? length - at : KERNEL_LENGTH_MAX;
}

static bool write_all(uint64_t node, uint64_t handle, uint8_t content, size_t length)
{
    bool written = true;
    memset(large, content, length);
    for (size_t at = 0; written && at < length; at += piece_of(at, length)) {
        size_t piece = piece_of(at, length);
        const struct fuse_write_in in = {.fh = handle,
                                         .offset = at,
                                         .size = (uint32_t)piece,
                                         .write_flags = wants_back ? FUSE_WRITE_CACHE : 0};
        struct fuse_write_out out;
        written = expect("write", ASK(FUSE_WRITE, node, in, large, piece));
        if (!written)
            break;
        take_body(&out, sizeof out);
        if (out.size != piece)
            fail("a short write", -EPROTO);
    }
    return written;
}

/* Whoever hears 0 knows that all of it is durable, unless the store has stopped. */
static void commit(uint32_t opcode, uint64_t node, uint64_t handle)
{
    const struct fuse_fsync_in in = {.fh = handle};
    if (!expect("fsync", ASK(opcode, node, in, NULL, 0)) || filesystem_has_failed(life.filesystem))
        return;
    memcpy(life.durable, life.acknowledged, sizeof life.durable);
    memset(life.changed, 0, sizeof life.changed);
}

/* ---- the workload ------------------------------------------------------------------------------------------------ */

static void make(unsigned number, uint8_t content, bool durable)
{
    uint64_t handle = 0, node = create(FUSE_CREATE, name_of(number), &handle);
    life.failed[number] = life.changed[number] = true;
    if (node == 0)
        return;
    if (write_all(node, handle, content, length_of(number))) {
        life.acknowledged[number] = content;
        life.failed[number] = false;
    }
    if (durable)
        commit(FUSE_FSYNC, node, handle);
    release(node, handle, O_RDWR);
    forget(node);
}

static void check_read(unsigned number)
{
    uint64_t handle, node = look_up_file(number);
    if (node != 0 && open_node(node, O_RDONLY, &handle)) {
        for (size_t at = 0; at < length_of(number); at += piece_of(at, length_of(number))) {
            size_t piece = piece_of(at, length_of(number));
            const struct fuse_read_in in = {.fh = handle, .offset = at, .size = (uint32_t)piece};
            if (!expect("read", ASK(FUSE_READ, node, in, NULL, 0)) || life.failed[number])
                continue;
            if (kernel_answer_length != piece)
                fail("a short read", -EPROTO);
            for (size_t byte = 0; byte < piece; byte++)
                if (kernel_answer[byte] != life.acknowledged[number])
                    fail("wrong bytes", -EILSEQ);
        }
        release(node, handle, O_RDONLY);
    }
    forget(node);
}

/* One answer of READDIRPLUS: the next cookie, 0 at the end, and which files it names. */
static uint64_t take_listing(uint64_t cookie, uint32_t *files)
{
    static uint8_t batch[sizeof(struct fuse_batch_forget_in) + 64 * sizeof(struct fuse_forget_one)];
    struct fuse_batch_forget_in forgets = {0};
    uint64_t last = 0;
    for (size_t at = 0; at < kernel_answer_length;) {
        struct fuse_entry_out entry;
        struct fuse_dirent head;
        char name[256];
        memcpy(&entry, kernel_answer + at, sizeof entry);
        memcpy(&head, kernel_answer + at + sizeof entry, FUSE_NAME_OFFSET);
        memcpy(name, kernel_answer + at + sizeof entry + FUSE_NAME_OFFSET, head.namelen);
        name[head.namelen] = 0;
        if (strcmp(name, "..") == 0 && head.ino != ROOT)
            fail("the parent of a directory", (int)head.ino);
        if (sscanf(name, "file %c", name) == 1)
            *files |= 1u << (name[0] - '0');
        last = head.off;
        at += FUSE_DIRENT_ALIGN(FUSE_NAME_OFFSET_DIRENTPLUS + head.namelen);
        if (entry.nodeid == 0)
            continue;
        const struct fuse_forget_one one = {.nodeid = entry.nodeid, .nlookup = 1};
        memcpy(batch + forgets.count++ * sizeof one, &one, sizeof one);
        looked_up(entry.nodeid);
    }
    if (last == cookie || last == 0)
        return 0;
    if (kernel_send(FUSE_BATCH_FORGET, 0, &forgets, sizeof forgets, batch,
                    forgets.count * sizeof(struct fuse_forget_one)))
        for (uint32_t at = 0; at < forgets.count; at++) {
            struct fuse_forget_one one;
            memcpy(&one, batch + at * sizeof one, sizeof one);
            for (uint32_t node = 0; node < life.node_count; node++)
                life.nodes[node].lookups -= life.nodes[node].id == one.nodeid;
        }
    return last;
}

static void list(uint64_t node)
{
    const struct fuse_open_in in = {.flags = O_RDONLY | O_DIRECTORY};
    struct fuse_open_out opened;
    uint64_t cookie = 0;
    uint32_t files = 0;
    bool whole = true;
    if (!expect("opendir", ASK(FUSE_OPENDIR, node, in, NULL, 0)))
        return;
    take_body(&opened, sizeof opened);
    do {
        const struct fuse_read_in read_in = {.fh = opened.fh, .offset = cookie, .size = 2000};
        whole = expect("readdirplus", ASK(FUSE_READDIRPLUS, node, read_in, NULL, 0));
        cookie = whole ? take_listing(cookie, &files) : 0;
    } while (cookie != 0);
    for (unsigned number = 0; whole && node == ROOT && number < FILES; number++)
        if (life.acknowledged[number] != 0 && !life.failed[number] && (files & 1u << number) == 0)
            fail("a listing lacks a file", -ENOENT);
    const struct fuse_release_in release_in = {.fh = opened.fh};
    expect("releasedir", ASK(FUSE_RELEASEDIR, node, release_in, NULL, 0));
}

static void change_attributes(unsigned number)
{
    static const char setxattr[] = "user.colour\0red and green";
    const struct pump_statx_in statx = {0};
    const struct fuse_setattr_in mode = {.valid = FATTR_MODE, .mode = 0600},
                                 times = {.valid = FATTR_MTIME | FATTR_CTIME, .mtime = 1000, .ctime = 1000};
    const struct {
        uint32_t size, flags;
    } set = {.size = 13};
    const struct fuse_getxattr_in get = {.size = 100};
    const struct fuse_ioctl_in get_flags = {.cmd = (uint32_t)FS_IOC_GETFLAGS, .out_size = 4},
                               set_flags = {.cmd = (uint32_t)FS_IOC_SETFLAGS, .in_size = 4};
    const uint32_t none = 0;
    uint64_t node = look_up_file(number);
    if (node == 0)
        return;
    expect("getattr", ASK(FUSE_GETATTR, node, getattr, NULL, 0));
    expect("statx", ASK(PUMP_OPCODE_STATX, node, statx, NULL, 0));
    expect("chmod", ASK(FUSE_SETATTR, node, mode, NULL, 0));
    expect("utimes", ASK(FUSE_SETATTR, node, times, NULL, 0));
    if (expect("setxattr", ASK(FUSE_SETXATTR, node, set, setxattr, sizeof setxattr))) {
        if (expect("getxattr", ASK(FUSE_GETXATTR, node, get, setxattr, 12)) &&
            (kernel_answer_length != 13 || memcmp(kernel_answer, setxattr + 12, 13) != 0))
            fail("an attribute", -EILSEQ);
        expect("listxattr", ASK(FUSE_LISTXATTR, node, get, NULL, 0));
        expect("removexattr", kernel_ask(FUSE_REMOVEXATTR, node, NULL, 0, setxattr, 12));
    }
    expect("lsattr", ASK(FUSE_IOCTL, node, get_flags, NULL, 0));
    expect("chattr", ASK(FUSE_IOCTL, node, set_flags, &none, sizeof none));
    forget(node);
}

/* A file that no name leads to, with a copy of another, of which a part becomes a hole. */
static void change_ranges(unsigned number)
{
    uint64_t handle = 0, node = look_up_file(number), copy = create(FUSE_TMPFILE, "", &handle);
    const struct fuse_copy_file_range_in in = {.nodeid_out = copy, .len = length_of(number)},
                                         back = {.off_in = 4096, .off_out = 100, .nodeid_out = copy, .len = 5000};
    const struct fuse_fallocate_in hole = {
        .offset = 5000, .length = 9000, .mode = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE},
                                   more = {.offset = 0, .length = 1u << 20};
    const struct fuse_lseek_in seek = {.whence = SEEK_HOLE};
    if (copy == 0) {
        forget(node);
        return;
    }
    if (node != 0) {
        expect("copy", ASK(PUMP_OPCODE_COPY_FILE_RANGE_64, node, in, NULL, 0));
        expect("copy unaligned", ASK(FUSE_COPY_FILE_RANGE, node, back, NULL, 0));
    }
    expect("punch a hole", ASK(FUSE_FALLOCATE, copy, hole, NULL, 0));
    expect("allocate", ASK(FUSE_FALLOCATE, copy, more, NULL, 0));
    int result = ASK(FUSE_LSEEK, copy, seek, NULL, 0);
    if (!wants_back && (result != -ENXIO || life.refused == 0)) /* it may have got no content */
        expect("seek", result);
    else if (wants_back && result != -ENOSYS && result != -ENOTCONN)
        fail("seek in what the kernel keeps", result);
    write_all(copy, handle, 7, length_of(3));
    release(copy, handle, O_RDWR);
    forget(copy);
    forget(node);
}

static void change_names(unsigned number)
{
    const struct fuse_mkdir_in mkdir_in = {.mode = 0755};
    const struct fuse_mknod_in mknod_in = {.mode = S_IFIFO | 0600};
    const struct fuse_fsync_in fsync_in = {0};
    uint64_t node = 0, file;
    if (expect("mkdir", ASK(FUSE_MKDIR, ROOT, mkdir_in, "directory", 10)))
        node = take_entry();
    if (node == 0)
        return;
    if (expect("symlink", kernel_ask(FUSE_SYMLINK, node, NULL, 0, "link\0target", 12))) {
        uint64_t link = take_entry();
        if (expect("readlink", kernel_ask(FUSE_READLINK, link, NULL, 0, NULL, 0)) &&
            (kernel_answer_length != 6 || memcmp(kernel_answer, "target", 6) != 0))
            fail("a target", -EILSEQ);
        forget(link);
        expect("unlink", kernel_ask(FUSE_UNLINK, node, NULL, 0, "link", 5));
    }
    if (expect("mknod", ASK(FUSE_MKNOD, node, mknod_in, "pipe", 5))) {
        forget(take_entry());
        expect("unlink", kernel_ask(FUSE_UNLINK, node, NULL, 0, "pipe", 5));
    }
    list(node);
    if ((file = look_up_file(number)) != 0) {
        const struct fuse_link_in link_in = {.oldnodeid = file};
        const struct fuse_rename2_in rename_in = {.newdir = ROOT}, exchange = {.newdir = ROOT, .flags = 2};
        if (expect("link", ASK(FUSE_LINK, node, link_in, "other", 6))) {
            forget(take_entry());
            char names[32];
            int length = snprintf(names, sizeof names, "other%c%s", 0, name_of(number));
            expect("exchange", ASK(FUSE_RENAME2, node, exchange, names, (size_t)length + 1));
            expect("rename", ASK(FUSE_RENAME2, node, rename_in, names, (size_t)length + 1));
            /* Names of one file: neither goes by that. */
            expect("unlink", kernel_ask(FUSE_UNLINK, node, NULL, 0, "other", 6));
        }
        forget(file);
    }
    expect("fsyncdir", ASK(FUSE_FSYNCDIR, node, fsync_in, NULL, 0));
    forget(node);
    int result = kernel_ask(FUSE_RMDIR, ROOT, NULL, 0, "directory", 10);
    if (result != -ENOTEMPTY || life.refused == 0)
        expect("rmdir", result);
}

static void take_snapshots(unsigned number)
{
    const struct fuse_ioctl_in take = {.cmd = (uint32_t)COWFS_IOC_SNAPSHOT, .in_size = sizeof(struct cowfs_snapshot)},
                               tell = {.cmd = (uint32_t)COWFS_IOC_SNAPSHOT_TAKE,
                                       .in_size = sizeof(struct cowfs_snapshot_taken)},
                               destroy = {.cmd = (uint32_t)COWFS_IOC_SNAPSHOT_DESTROY,
                                          .in_size = sizeof(struct cowfs_snapshot)};
    const struct cowfs_snapshot first = {.name = "first"}, other = {.flags = COWFS_SNAPSHOT_NO_SYNC, .name = "other"};
    const struct cowfs_snapshot_taken second = {.name = "second"};
    uint64_t handle, node = look_up_file(number);
    if (node == 0)
        return;
    if (expect("snapshot", ASK(FUSE_IOCTL, node, take, &first, sizeof first))) {
        if (!filesystem_has_failed(life.filesystem)) {
            memcpy(life.durable, life.acknowledged, sizeof life.durable);
            memset(life.changed, 0, sizeof life.changed);
        }
        expect("destroy", ASK(FUSE_IOCTL, node, destroy, &first, sizeof first));
    }
    if (!wants_back) {
        expect("tell", ASK(FUSE_IOCTL, node, tell, &second, sizeof second));
    } else if (open_node(node, O_RDWR, &handle)) {
        /* Where there is no mount the file cannot be flushed; which error says so is that of its file system. */
        (void)ASK(FUSE_IOCTL, node, take, &other, sizeof other);
        release(node, handle, O_RDWR);
    }
    forget(node);
}

/* O_TRUNC takes the content of a file that is opened, and of no other. */
static void truncate_by_open(unsigned number)
{
    uint64_t handle, node = look_up_file(number);
    struct fuse_attr_out out;
    if (node == 0)
        return;
    bool was_failed = life.failed[number];
    if (open_node(node, O_WRONLY | O_TRUNC, &handle)) {
        life.failed[number] = true; /* not looked at any more */
        release(node, handle, O_WRONLY | O_TRUNC);
    } else if (!was_failed && expect("getattr", ASK(FUSE_GETATTR, node, getattr, NULL, 0))) {
        take_body(&out, sizeof out);
        if (out.attr.size != length_of(number))
            fail("an open that failed took the content", -EILSEQ);
    }
    forget(node);
}

static void forwarded(void)
{
    const struct pump_statx_in statx = {0};
    const struct fuse_mkdir_in mkdir_in = {.mode = 0755};
    uint64_t node = look_up(ROOT, ".cowfs");
    if (node == 0)
        return;
    expect("getattr, forwarded", ASK(FUSE_GETATTR, node, getattr, NULL, 0));
    expect("statx, forwarded", ASK(PUMP_OPCODE_STATX, node, statx, NULL, 0));
    int result = ASK(FUSE_MKDIR, node, mkdir_in, "new", 4);
    if (result != -ENOENT)
        expect("mkdir, forwarded", result);
}

/* Answered when all forgets before it have been worked off. */
static void interrupt(void)
{
    const struct fuse_interrupt_in in = {.unique = 3};
    int result = ASK(FUSE_INTERRUPT, 0, in, NULL, 0);
    if (result != -ENOSYS && result != -ENOTCONN)
        fail("interrupt", result);
}

static void take_away(unsigned number)
{
    int result = kernel_ask(FUSE_UNLINK, ROOT, NULL, 0, name_of(number), strlen(name_of(number)) + 1);
    if (result != -ENOENT || !life.failed[number])
        expect("unlink", result);
    life.failed[number] = life.changed[number] = true; /* not looked at any more */
}

static void work(void)
{
    expect("statfs", kernel_ask(FUSE_STATFS, ROOT, NULL, 0, NULL, 0));
    /* The first to open anything finds no memory for what is open: here an open, there a creation. */
    if (!atomic_load(&for_ever))
        truncate_by_open(CUT);
    for (unsigned number = 1; number < CUT; number++)
        make(number, (uint8_t)(number + 1), number % 3 == 2);
    if (atomic_load(&for_ever))
        truncate_by_open(CUT);
    for (unsigned number = 0; number < FILES; number++)
        check_read(number);
    list(ROOT);
    change_attributes(1);
    change_ranges(3);
    change_names(2);
    take_snapshots(5);
    forwarded();
    commit(FUSE_FSYNCDIR, ROOT, 0);
    take_away(6);
    interrupt();
}

/* ---- lives ------------------------------------------------------------------------------------------------------- */

static int descriptor_count(void)
{
    int count = 0;
    DIR *directory = opendir("/proc/self/fd");
    if (directory == NULL)
        fail("/proc/self/fd", -errno);
    while (readdir(directory) != NULL)
        count++;
    closedir(directory);
    return count;
}

static void pump_end(void)
{
    if (life.pump != NULL) {
        pump_stop(life.pump);
        kernel_check_silence();
        pump_destroy(life.pump);
    }
    life.pump = NULL;
    kernel_end();
    while (waitpid(-1, NULL, 0) > 0) /* that which flushes */
        ;
}

/* Everything that the pump has of threads answers, or the pump has ended. */
static void settle(void)
{
    while (kernel.uring && !all_queues_ready() && !kernel.has_ended)
        kernel_wait();
    int result = ASK(FUSE_GETATTR, ROOT, getattr, NULL, 0);
    if (result != -ENOTCONN)
        expect("first request", result);
    interrupt();
    result = kernel_ask(FUSE_LOOKUP, ROOT, NULL, 0, ".cowfs", 7);
    /* Whoever takes back what pyfuse3 answers has ended, and that is about to be told. */
    while (result == -EIO && !kernel.has_ended)
        kernel_wait();
    if (result != -ENOTCONN && result != -EIO)
        expect("first forwarded request", result);
}

/* Whether there is a pump that answers. If not, it has said so. */
static bool pump_begin(void)
{
    const struct pump_options options = {
        .device = kernel.device,
        .forward = kernel.forward,
        .uring = wants_uring,
        .awake = true,
        .writeback = wants_back,
        .threads = 1,
        .reserved = ".cowfs",
        .mountpoint = wants_back ? "." : NULL,
    };
    struct fuse_out_header greeting;
    char reason[128];
    int result = pump_create(life.filesystem, &options, &life.pump, reason);
    if (result != 0) {
        life.pump = NULL;
    } else {
        kernel.events = pump_event_descriptor(life.pump);
        kernel.uring = pump_uses_uring(life.pump);
        if (wants_uring && !kernel.uring && !atomic_load(&has_failed)) {
            fprintf(stderr, "pump_allocation_driver: no io_uring: %s\n", reason);
            exit(3);
        }
        if (wants_uring && !kernel.uring && reason[0] == 0)
            fail("no io_uring, and no reason", -EPROTO);
        if (recv(kernel.device_end, kernel_message, sizeof kernel_message, MSG_DONTWAIT) < (ssize_t)sizeof greeting)
            fail("INIT is not answered", -errno);
        result = pump_start(life.pump);
    }
    if (result == 0)
        settle();
    if (result != 0 && (!atomic_load(&has_failed) || (result != -ENOMEM && result != -EAGAIN && result != -ENFILE)))
        fail("begin", result);
    return result == 0 && !kernel.has_ended;
}

static void pump_begin_again(void)
{
    pump_end();
    disarm();
    life.refused = 0;
    restarts++;
    kernel_begin(wants_uring);
    if (!pump_begin())
        fail("begin again", -ENOTCONN);
}

/* What the kernel holds is what is counted. */
static void check_counts(void)
{
    struct filesystem_nodes held = {0};
    uint64_t cursor = 0;
    for (uint32_t at = 0; at < life.node_count; at++)
        if (filesystem_lookup_count(life.filesystem, life.nodes[at].id) != life.nodes[at].lookups)
            fail("lookups are miscounted", (int)life.nodes[at].id);
    do
        expect("held nodes", filesystem_held_nodes(life.filesystem, 0, &cursor, &held));
    while (cursor != 0);
    for (size_t at = 0; at < held.count; at++)
        for (uint32_t node = 0; node <= life.node_count; node++)
            if (node == life.node_count)
                fail("a node is held that nobody knows", (int)held.ids[at]);
            else if (life.nodes[node].id == held.ids[at])
                break;
    free(held.ids);
    if (filesystem_open_nodes(life.filesystem) != 0 || life.open_files != 0)
        fail("files are open", (int)life.open_files);
}

static void pool_open(struct storage *storage)
{
    const struct store_options options = {.no_background = true};
    struct store_failure failure = {{0}};
    struct store_volume volume;
    expect("open", store_open(storage, &options, &life.store, &failure));
    expect("volume", store_volume_find(life.store, "main", &volume));
    expect("file system", filesystem_open(life.store, volume.id, false, &life.filesystem));
    life.volume_id = volume.id;
    if (wants_uring && !wants_back)
        expect("compression", filesystem_set_compression(life.filesystem, 0, 1, 0));
}

static void file_make(unsigned number, uint8_t content)
{
    const struct filesystem_creation creation = {.mode = S_IFREG | 0644};
    struct filesystem_attributes attributes;
    memset(large, content, length_of(number));
    expect("create", filesystem_create(life.filesystem, ROOT, (struct filesystem_name){name_of(number), 6}, &creation,
                                       &attributes));
    expect("write", filesystem_write(life.filesystem, attributes.node, 0, large, length_of(number)));
    life.acknowledged[number] = life.durable[number] = content;
}

/* A pool with files that no life of a pump has in memory. */
static void pool_make(struct storage *storage)
{
    const struct store_parameters parameters = {.journal_size_bytes = 1u << 20};
    struct store_failure failure = {{0}};
    const struct store_options options = {.no_background = true};
    uint64_t volume_id;
    expect("format", store_format(storage, &parameters, &failure));
    expect("open", store_open(storage, &options, &life.store, &failure));
    expect("volume", store_volume_create(life.store, "main", &volume_id));
    expect("file system", filesystem_open(life.store, volume_id, false, &life.filesystem));
    file_make(0, 1);
    file_make(CUT, CUT + 1);
    filesystem_close(life.filesystem);
    expect("close", store_close(life.store));
}

/* With all memory there is. */
static void verify(struct storage *storage)
{
    static uint8_t found[LARGE_BYTES];
    pool_open(storage);
    for (unsigned number = 0; number < FILES; number++) {
        struct filesystem_attributes attributes;
        size_t length = 0;
        if (life.failed[number] || life.changed[number])
            continue;
        expect("a durable file", filesystem_lookup(life.filesystem, ROOT, (struct filesystem_name){name_of(number), 6},
                                                   &attributes));
        expect("its content", filesystem_read(life.filesystem, attributes.node, 0, found, sizeof found, &length));
        if (length != length_of(number) || found[0] != life.durable[number] || found[length - 1] != found[0])
            fail("a durable file has another content", -EILSEQ);
        verified++;
    }
    expect("release", filesystem_release_all(life.filesystem));
    int64_t problems = filesystem_check(life.filesystem, life.volume_id, report, NULL);
    if (problems == 0)
        problems = store_check(life.store, true, report, NULL);
    if (problems != 0)
        fail("the pool is not sound", -EUCLEAN);
    filesystem_close(life.filesystem);
    expect("close", store_close(life.store));
}

/* One failure: true when it happened. */
static bool run(unsigned long index, bool later_ones_too)
{
    struct lasting_storage storage = {.base.operations = &lasting_operations};
    life = (struct life){0};
    current_index = index;
    disarm();
    if (storage_open_memory(POOL_SIZE_BYTES, &storage.inner) != 0)
        fail("memory", -ENOMEM);
    pool_make(&storage.base);
    pool_open(&storage.base);
    int descriptors = descriptor_count(), mapped = mappings;
    kernel_begin(wants_uring);
    arm(index, later_ones_too);
    bool begun = pump_begin(), happened = atomic_load(&has_failed);
    if (!begun)
        pump_begin_again();
    work();
    bool whole = !kernel.has_ended;
    if (!whole)
        pump_begin_again();
    happened = happened || atomic_load(&has_failed);
    kernel_leave_unanswered(FUSE_LOOKUP, ROOT, ".cowfs", 7);
    pump_end();
    refused += life.refused;
    disarm();
    if (descriptor_count() != descriptors || mappings != mapped)
        fail("descriptors or mappings are left", descriptor_count() - descriptors);
    if (whole)
        check_counts();
    bool clean = index % 2 == 0 && !filesystem_has_failed(life.filesystem);
    if (clean)
        expect("release", filesystem_release_all(life.filesystem));
    filesystem_close(life.filesystem);
    if (clean)
        expect("close", store_close(life.store));
    else
        store_abandon(life.store);
    verify(&storage.base);
    storage.inner->operations->close(storage.inner);
    return happened;
}

int main(int argument_count, char **arguments)
{
    unsigned long step = argument_count == 4 ? strtoul(arguments[3], NULL, 10) : 0, failures = 0;
    if (step == 0) {
        fprintf(stderr, "usage: pump_allocation_driver device|uring through|back STEP\n");
        return 2;
    }
    wants_uring = strcmp(arguments[1], "uring") == 0;
    wants_back = strcmp(arguments[2], "back") == 0;
    for (int later_ones_too = 0; later_ones_too < 2; later_ones_too++)
        for (unsigned long index = 1; run(index, later_ones_too); index += step)
            failures++;
    printf("%lu allocations failed, %lu requests heard of it, %lu pumps began anew, %lu durable files verified\n",
           failures, refused, restarts, verified);
    return 0;
}
