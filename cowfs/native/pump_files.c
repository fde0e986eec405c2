/* Requests about open files. A file handle tells only which fsync(2) has heard of what (opens.c): the node says
 * everything else.
 *
 * With the kernel keeping what is written, it reads through handles that are open for writing alone, and at each close
 * sends pages and waits, whatever FOPEN_NOFLUSH says. */
#include "pump_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>

#define OPEN_FLAGS (FOPEN_KEEP_CACHE | FOPEN_NOFLUSH | FOPEN_PARALLEL_DIRECT_WRITES)

static int may_change(struct pump *pump, uint64_t node, uint32_t flags)
{
    unsigned wanted = FILESYSTEM_OPEN_WRITE;
    wanted |= (flags & O_APPEND) != 0 ? (unsigned)FILESYSTEM_OPEN_APPEND : 0;
    wanted |= (flags & O_TRUNC) != 0 ? (unsigned)FILESYSTEM_OPEN_TRUNCATE : 0;
    if (filesystem_is_read_only_node(pump->filesystem, node))
        return -EROFS;
    return filesystem_may_open(pump->filesystem, node, wanted);
}

static int pump_opened(struct pump *pump, uint64_t node, uint32_t flags, uint64_t *handle)
{
    int status = filesystem_opened(pump->filesystem, node, handle);
    if (status != 0)
        return status;
    status = pump_cache_opened(pump, node, flags);
    if (status != 0)
        filesystem_closed(pump->filesystem, node, *handle);
    else
        atomic_fetch_add_explicit(&pump->open_files, 1, memory_order_relaxed);
    return status;
}

static void pump_closed(struct pump *pump, uint64_t node, uint32_t flags, uint64_t handle)
{
    pump_cache_released(pump, node, flags);
    filesystem_closed(pump->filesystem, node, handle);
    atomic_fetch_sub_explicit(&pump->open_files, 1, memory_order_relaxed);
}

static int truncate_opened(struct pump *pump, uint64_t node, const struct fuse_open_in *in)
{
    struct filesystem_attributes attributes;
    bool keeps = (in->open_flags & FUSE_OPEN_KILL_SUIDGID) == 0;
    struct filesystem_change change = {.fields = FILESYSTEM_SET_SIZE | (keeps ? FILESYSTEM_SET_KEEP_BITS : 0u)};
    return filesystem_setattr(pump->filesystem, node, &change, &attributes);
}

PUMP_HANDLER(pump_open)
{
    struct fuse_open_in in;
    memcpy(&in, request->argument, sizeof in);
    uint64_t node = request->header.nodeid;
    if (pump_is_virtual(node))
        return pump_fail(answer, -EPERM);
    if (filesystem_is_stale(pump->filesystem, node))
        return pump_fail(answer, -ESTALE);
    if ((in.flags & (O_WRONLY | O_RDWR | O_TRUNC)) != 0) {
        int status = may_change(pump, node, in.flags);
        if (status != 0)
            return pump_fail(answer, status);
    }
    struct fuse_open_out out = {.open_flags = OPEN_FLAGS};
    int status = pump_opened(pump, node, in.flags, &out.fh);
    if (status != 0)
        return pump_fail(answer, status);
    /* Last: an open that fails must not have taken the content. */
    if ((in.flags & O_TRUNC) != 0 && (status = truncate_opened(pump, node, &in)) != 0) {
        pump_closed(pump, node, in.flags, out.fh);
        return pump_fail(answer, status);
    }
    return pump_succeed(answer, &out, sizeof out);
}

PUMP_HANDLER(pump_release)
{
    struct fuse_release_in in;
    memcpy(&in, request->argument, sizeof in);
    pump_closed(pump, request->header.nodeid, in.flags, in.fh);
    return pump_succeed(answer, NULL, 0);
}

enum pump_outcome pump_answer_created(struct pump *pump, const struct filesystem_attributes *attributes, uint32_t flags,
                                      struct pump_answer *answer)
{
    struct pump_created out = {.open = {.open_flags = OPEN_FLAGS}};
    int status = pump_opened(pump, attributes->node, flags, &out.open.fh);
    if (status != 0) {
        (void)filesystem_forget(pump->filesystem, attributes->node, 1);
        return pump_fail(answer, status);
    }
    pump_entry(pump, attributes, &out.entry);
    return pump_succeed(answer, &out, sizeof out);
}

PUMP_HANDLER(pump_create_file)
{
    struct filesystem_attributes attributes;
    struct filesystem_name name;
    struct fuse_create_in in;
    size_t used;
    memcpy(&in, request->argument, sizeof in);
    int status = pump_name(request->payload, request->payload_length, &name, &used);
    if (status == 0)
        status = pump_new_name_check(pump, request->header.nodeid, name);
    struct filesystem_creation creation = {
        .mode = S_IFREG | (in.mode & 07777u), .uid = request->header.uid, .gid = request->header.gid};
    if (status == 0)
        status = filesystem_create(pump->filesystem, request->header.nodeid, name, &creation, &attributes);
    /* The kernel remembered that the name was missing, and a rollback has just brought it back. With ESTALE it looks
     * the name up anew, checks permissions and opens: creating must not skip that. */
    if (status == -EEXIST && (in.flags & O_EXCL) == 0)
        status = -ESTALE;
    if (status != 0)
        return pump_fail(answer, status);
    return pump_answer_created(pump, &attributes, in.flags, answer);
}

PUMP_HANDLER(pump_read)
{
    struct fuse_read_in in;
    size_t got = 0;
    memcpy(&in, request->argument, sizeof in);
    size_t wanted = in.size < answer->room ? in.size : answer->room;
    int status = filesystem_read(pump->filesystem, request->header.nodeid, in.offset, answer->bytes, wanted, &got);
    if (status != 0)
        return pump_fail(answer, status);
    answer->length = got;
    answer->error = 0;
    return PUMP_ANSWERED;
}

PUMP_HANDLER(pump_write)
{
    struct fuse_write_in in;
    memcpy(&in, request->argument, sizeof in);
    if (in.size > request->payload_length)
        return pump_fail(answer, -EINVAL);
    unsigned flags = (in.flags & O_APPEND) != 0 ? (unsigned)FILESYSTEM_WRITE_APPEND : 0;
    if (pump->cache != NULL && (in.write_flags & FUSE_WRITE_CACHE) != 0)
        flags |= FILESYSTEM_WRITE_CACHED;
    if ((in.write_flags & FUSE_WRITE_KILL_SUIDGID) == 0)
        flags |= FILESYSTEM_WRITE_KEEP_BITS;
    int status = filesystem_write_flagged(pump->filesystem, request->header.nodeid, in.offset, request->payload,
                                          in.size, flags);
    if (status != 0)
        return pump_fail(answer, status);
    struct fuse_write_out out = {.size = in.size};
    return pump_succeed(answer, &out, sizeof out);
}

PUMP_HANDLER(pump_fsync)
{
    (void)pump;
    (void)request;
    (void)answer;
    return PUMP_COMMIT;
}
