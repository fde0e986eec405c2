/* Requests about inodes: attributes, extended attributes, the whole file system. */
#define _GNU_SOURCE /* STATX_BTIME */
#include "pump_internal.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <time.h>

static const char acl_prefix[] = "system.posix_acl_";

void pump_attributes(struct pump *pump, const struct filesystem_attributes *attributes, struct fuse_attr *out)
{
    uint32_t mode = attributes->mode;
    /* An old version of a program may have the hole that was closed since. */
    if (pump->options.honours_setuid && S_ISREG(mode) && (mode & (S_ISUID | S_ISGID)) != 0 &&
        filesystem_is_read_only_node(pump->filesystem, attributes->node))
        mode &= ~(uint32_t)(S_ISUID | S_ISGID);
    *out = (struct fuse_attr){
        .ino = attributes->node,
        .size = attributes->size_bytes,
        .blocks = attributes->blocks_512,
        .atime = (uint64_t)attributes->atime.seconds,
        .mtime = (uint64_t)attributes->mtime.seconds,
        .ctime = (uint64_t)attributes->ctime.seconds,
        .atimensec = attributes->atime.nanoseconds,
        .mtimensec = attributes->mtime.nanoseconds,
        .ctimensec = attributes->ctime.nanoseconds,
        .mode = mode,
        .nlink = attributes->nlink,
        .uid = attributes->uid,
        .gid = attributes->gid,
        .rdev = (uint32_t)attributes->rdev,
        .blksize = STORE_BLOCK_SIZE,
    };
}

uint64_t pump_valid_s(struct pump *pump, uint64_t node)
{
    return filesystem_is_settling(pump->filesystem, node) ? 0 : PUMP_VALID_S;
}

enum pump_outcome pump_answer_attributes(struct pump *pump, int status, const struct filesystem_attributes *attributes,
                                         struct pump_answer *answer)
{
    struct fuse_attr_out out = {0};
    if (status != 0)
        return pump_fail(answer, status);
    out.attr_valid = pump_valid_s(pump, attributes->node);
    pump_attributes(pump, attributes, &out.attr);
    return pump_succeed(answer, &out, sizeof out);
}

PUMP_HANDLER(pump_getattr)
{
    struct filesystem_attributes attributes;
    if (pump_is_virtual(request->header.nodeid))
        return PUMP_FORWARD;
    int status = filesystem_getattr(pump->filesystem, request->header.nodeid, &attributes);
    return pump_answer_attributes(pump, status, &attributes, answer);
}

void pump_statx_fill(const struct fuse_attr *plain, struct pump_statx *out)
{
    *out = (struct pump_statx){
        .mask = STATX_BASIC_STATS,
        .blksize = plain->blksize,
        .nlink = plain->nlink,
        .uid = plain->uid,
        .gid = plain->gid,
        .mode = (uint16_t)plain->mode,
        .ino = plain->ino,
        .size = plain->size,
        .blocks = plain->blocks,
        .atime = {.seconds = (int64_t)plain->atime, .nanoseconds = plain->atimensec},
        .ctime = {.seconds = (int64_t)plain->ctime, .nanoseconds = plain->ctimensec},
        .mtime = {.seconds = (int64_t)plain->mtime, .nanoseconds = plain->mtimensec},
        .rdev_major = major(plain->rdev),
        .rdev_minor = minor(plain->rdev),
    };
}

/* The kernel asks for this instead of GETATTR when somebody wants the time of birth. */
PUMP_HANDLER(pump_statx)
{
    struct filesystem_attributes attributes;
    struct pump_statx_out out = {0};
    struct fuse_attr plain;
    if (pump_is_virtual(request->header.nodeid))
        return PUMP_FORWARD;
    int status = filesystem_getattr(pump->filesystem, request->header.nodeid, &attributes);
    if (status != 0)
        return pump_fail(answer, status);
    out.attr_valid = pump_valid_s(pump, attributes.node);
    pump_attributes(pump, &attributes, &plain);
    pump_statx_fill(&plain, &out.stat);
    out.stat.mask |= STATX_BTIME;
    out.stat.btime.seconds = attributes.birth.seconds;
    out.stat.btime.nanoseconds = attributes.birth.nanoseconds;
    return pump_succeed(answer, &out, sizeof out);
}

static struct filesystem_time time_of(uint64_t seconds, uint32_t nanoseconds, bool now)
{
    struct timespec present;
    if (!now)
        return (struct filesystem_time){(int64_t)seconds, nanoseconds};
    clock_gettime(CLOCK_REALTIME, &present);
    return (struct filesystem_time){present.tv_sec, (uint32_t)present.tv_nsec};
}

PUMP_HANDLER(pump_setattr)
{
    static const struct {
        uint32_t kernel;
        unsigned ours;
    } fields[] = {
        {FATTR_MODE, FILESYSTEM_SET_MODE},   {FATTR_UID, FILESYSTEM_SET_UID},     {FATTR_GID, FILESYSTEM_SET_GID},
        {FATTR_SIZE, FILESYSTEM_SET_SIZE},   {FATTR_ATIME, FILESYSTEM_SET_ATIME}, {FATTR_MTIME, FILESYSTEM_SET_MTIME},
        {FATTR_CTIME, FILESYSTEM_SET_CTIME},
    };
    struct filesystem_attributes attributes;
    struct fuse_setattr_in in;
    memcpy(&in, request->argument, sizeof in);
    if (pump_is_virtual(request->header.nodeid))
        return pump_fail(answer, -EPERM);
    if (in.atimensec > 999999999u || in.mtimensec > 999999999u || in.ctimensec > 999999999u)
        return pump_fail(answer, -EINVAL);
    struct filesystem_change change = {
        .mode = in.mode & 07777u,
        .uid = in.uid,
        .gid = in.gid,
        .size_bytes = in.size,
        .atime = time_of(in.atime, in.atimensec, (in.valid & FATTR_ATIME_NOW) != 0),
        .mtime = time_of(in.mtime, in.mtimensec, (in.valid & FATTR_MTIME_NOW) != 0),
        .ctime = time_of(in.ctime, in.ctimensec, false),
    };
    for (size_t at = 0; at < sizeof fields / sizeof *fields; at++)
        if ((in.valid & fields[at].kernel) != 0)
            change.fields |= fields[at].ours;
    if ((in.valid & (FATTR_SIZE | FATTR_KILL_SUIDGID)) == FATTR_SIZE)
        change.fields |= FILESYSTEM_SET_KEEP_BITS;
    bool given = ((in.valid & FATTR_ATIME) != 0 && (in.valid & FATTR_ATIME_NOW) == 0) ||
                 ((in.valid & FATTR_MTIME) != 0 && (in.valid & FATTR_MTIME_NOW) == 0);
    if ((in.valid & (FATTR_ATIME_NOW | FATTR_MTIME_NOW)) != 0 && !given)
        change.fields |= FILESYSTEM_SET_NOW;
    /* The times of writes that the kernel keeps. It was asked for no others in this form, but for those that a program
     * sets without the access time, which cannot be told apart. */
    if ((in.valid & ~(uint32_t)FATTR_FH) == (FATTR_MTIME | FATTR_CTIME) &&
        pump_cache_is_written(pump, request->header.nodeid))
        change.fields |= FILESYSTEM_SET_CACHED;
    int status = filesystem_setattr(pump->filesystem, request->header.nodeid, &change, &attributes);
    return pump_answer_attributes(pump, status, &attributes, answer);
}

PUMP_HANDLER(pump_statfs)
{
    struct filesystem_space space;
    (void)request;
    filesystem_statfs(pump->filesystem, &space);
    struct fuse_statfs_out out = {.st = {.blocks = space.blocks,
                                         .bfree = space.blocks_free,
                                         .bavail = space.blocks_available,
                                         .bsize = STORE_BLOCK_SIZE,
                                         .frsize = STORE_BLOCK_SIZE,
                                         .namelen = FILESYSTEM_NAME_LENGTH_MAX}};
    return pump_succeed(answer, &out, sizeof out);
}

/* ---- extended attributes --------------------------------------------------------------------------------------- */

/* Copies the name out of the request, whose memory the answer may take. */
struct xattr_name {
    struct filesystem_name name;
    uint8_t bytes[FILESYSTEM_NAME_LENGTH_MAX];
};

static int xattr_name(const struct pump_request *request, struct xattr_name *out, size_t *used)
{
    int status = pump_name(request->payload, request->payload_length, &out->name, used);
    if (status != 0)
        return status;
    if (out->name.length > sizeof out->bytes)
        return -ERANGE;
    /* Without FUSE's own support for ACLs nobody would enforce them. */
    if (out->name.length >= sizeof acl_prefix - 1 && memcmp(out->name.bytes, acl_prefix, sizeof acl_prefix - 1) == 0)
        return -EOPNOTSUPP;
    memcpy(out->bytes, out->name.bytes, out->name.length);
    out->name.bytes = out->bytes;
    return 0;
}

/* A value or a list, or with `size` 0 how long it is. */
static enum pump_outcome answer_sized(struct pump_answer *answer, int status, uint32_t size, size_t length)
{
    if (size == 0 && (status == 0 || status == -ERANGE)) {
        struct fuse_getxattr_out out = {.size = (uint32_t)length};
        return pump_succeed(answer, &out, sizeof out);
    }
    if (status != 0)
        return pump_fail(answer, status);
    answer->length = length;
    answer->error = 0;
    return PUMP_ANSWERED;
}

PUMP_HANDLER(pump_getxattr)
{
    struct fuse_getxattr_in in;
    struct xattr_name name;
    size_t used, length = 0;
    memcpy(&in, request->argument, sizeof in);
    int status = xattr_name(request, &name, &used);
    if (status == 0 && pump_is_virtual(request->header.nodeid))
        status = -ENODATA;
    if (status != 0)
        return pump_fail(answer, status);
    size_t room = in.size < answer->room ? in.size : answer->room;
    status = filesystem_getxattr(pump->filesystem, request->header.nodeid, name.name, answer->bytes, room, &length);
    return answer_sized(answer, status, in.size, length);
}

PUMP_HANDLER(pump_listxattr)
{
    struct fuse_getxattr_in in;
    size_t length = 0;
    int status = 0;
    memcpy(&in, request->argument, sizeof in);
    size_t room = in.size < answer->room ? in.size : answer->room;
    if (!pump_is_virtual(request->header.nodeid))
        status = filesystem_listxattr(pump->filesystem, request->header.nodeid, (char *)answer->bytes, room, &length);
    return answer_sized(answer, status, in.size, length);
}

PUMP_HANDLER(pump_setxattr)
{
    struct fuse_setxattr_in in = {0};
    struct xattr_name name;
    size_t used;
    memcpy(&in, request->argument, FUSE_COMPAT_SETXATTR_IN_SIZE);
    int status = xattr_name(request, &name, &used);
    if (status == 0 && pump_is_virtual(request->header.nodeid))
        status = -EPERM;
    if (status == 0 && in.size > request->payload_length - used)
        status = -EINVAL;
    if (status == 0)
        status = filesystem_setxattr(pump->filesystem, request->header.nodeid, name.name, request->payload + used,
                                     in.size, in.flags);
    return pump_fail(answer, status);
}

PUMP_HANDLER(pump_removexattr)
{
    struct xattr_name name;
    size_t used;
    int status = xattr_name(request, &name, &used);
    if (status == 0 && pump_is_virtual(request->header.nodeid))
        status = -EPERM;
    if (status == 0)
        status = filesystem_removexattr(pump->filesystem, request->header.nodeid, name.name);
    return pump_fail(answer, status);
}

/* ---- forgetting ------------------------------------------------------------------------------------------------ */

static void forget(struct pump *pump, uint64_t node, uint64_t count)
{
    if (pump_is_virtual(node))
        return;
    /* Nobody waits for an answer; what could not be removed now is removed at the next mount. */
    int status = filesystem_forget(pump->filesystem, node, count);
    if (status != 0)
        pump_event(pump, PUMP_EVENT_ERROR, FUSE_FORGET, node, status);
}

PUMP_HANDLER(pump_forget)
{
    struct fuse_forget_in in;
    (void)answer;
    memcpy(&in, request->argument, sizeof in);
    forget(pump, request->header.nodeid, in.nlookup);
    return PUMP_SILENT;
}

PUMP_HANDLER(pump_forget_batch)
{
    struct fuse_batch_forget_in in;
    struct fuse_forget_one one;
    (void)answer;
    memcpy(&in, request->argument, sizeof in);
    for (size_t at = 0; at < in.count && (at + 1) * sizeof one <= request->payload_length; at++) {
        memcpy(&one, request->payload + at * sizeof one, sizeof one);
        forget(pump, one.nodeid, one.nlookup);
    }
    return PUMP_SILENT;
}
