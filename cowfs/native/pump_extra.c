/* Requests that pyfuse3 does not know: ranges of files, files without a name, ioctls. */
#include "pump_internal.h"
#include "ioctl.h"

#include <errno.h>
#include <linux/fs.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* One copy request shares or copies at most this much, so that it ends soon: who asked goes on from there. */
#define COPY_LENGTH_MAX (UINT64_C(1) << 30)

PUMP_HANDLER(pump_fallocate)
{
    struct fuse_fallocate_in in;
    memcpy(&in, request->argument, sizeof in);
    if (pump_is_virtual(request->header.nodeid))
        return pump_fail(answer, -EPERM);
    return pump_fail(answer,
                     filesystem_allocate(pump->filesystem, request->header.nodeid, in.mode, in.offset, in.length));
}

PUMP_HANDLER(pump_lseek)
{
    struct fuse_lseek_out out = {0};
    struct fuse_lseek_in in;
    uint64_t found = 0;
    memcpy(&in, request->argument, sizeof in);
    /* What the kernel keeps is no hole, and this request brings none of it. Now it takes everything for data itself. */
    if (pump->cache != NULL)
        return pump_fail(answer, -ENOSYS);
    if (pump_is_virtual(request->header.nodeid) || (in.whence != SEEK_DATA && in.whence != SEEK_HOLE))
        return pump_fail(answer, -EINVAL);
    int status =
        filesystem_seek(pump->filesystem, request->header.nodeid, in.offset, in.whence == SEEK_HOLE, &found);
    if (status != 0)
        return pump_fail(answer, status);
    out.offset = found;
    return pump_succeed(answer, &out, sizeof out);
}

static int copy_range(struct pump *pump, const struct pump_request *request, uint64_t *copied)
{
    struct fuse_copy_file_range_in in;
    memcpy(&in, request->argument, sizeof in);
    if (in.flags != 0 || pump_is_virtual(request->header.nodeid) || pump_is_virtual(in.nodeid_out))
        return -EINVAL;
    uint64_t length = in.len < COPY_LENGTH_MAX ? in.len : COPY_LENGTH_MAX;
    return filesystem_copy_range(pump->filesystem, request->header.nodeid, in.off_in, in.nodeid_out, in.off_out, length,
                                 copied);
}

/* `cp --reflink=auto` and the copies of most languages' libraries arrive here. */
PUMP_HANDLER(pump_copy_file_range)
{
    uint64_t copied = 0;
    int status = copy_range(pump, request, &copied);
    if (status != 0)
        return pump_fail(answer, status);
    struct fuse_write_out out = {.size = (uint32_t)copied};
    return pump_succeed(answer, &out, sizeof out);
}

/* The same with 64 bits for the answer (protocol 7.45). */
PUMP_HANDLER(pump_copy_file_range_64)
{
    uint64_t copied = 0;
    int status = copy_range(pump, request, &copied);
    if (status != 0)
        return pump_fail(answer, status);
    struct pump_copy_file_range_out out = {.bytes_copied = copied};
    return pump_succeed(answer, &out, sizeof out);
}

PUMP_HANDLER(pump_tmpfile)
{
    struct filesystem_attributes attributes;
    struct fuse_create_in in;
    memcpy(&in, request->argument, sizeof in);
    if (pump_is_virtual(request->header.nodeid))
        return pump_fail(answer, -EPERM);
    struct filesystem_creation creation = {
        .mode = S_IFREG | (in.mode & 07777u), .uid = request->header.uid, .gid = request->header.gid};
    int status = filesystem_create_unnamed(pump->filesystem, request->header.nodeid, &creation, &attributes);
    if (status != 0)
        return pump_fail(answer, status);
    return pump_answer_created(pump, &attributes, in.flags, answer);
}

/* ---- ioctl ------------------------------------------------------------------------------------------------------- */

/* Our flags, chattr's and those of the extended interface. */
static const struct {
    uint32_t ours, plain, extended;
} flag_names[] = {
    {FILESYSTEM_IMMUTABLE, FS_IMMUTABLE_FL, FS_XFLAG_IMMUTABLE},
    {FILESYSTEM_APPEND, FS_APPEND_FL, FS_XFLAG_APPEND},
};
enum { FLAG_COUNT = sizeof flag_names / sizeof *flag_names };

static enum pump_outcome answer_ioctl(struct pump_answer *answer, const void *bytes, size_t length)
{
    struct fuse_ioctl_out out = {0};
    if (sizeof out + length > answer->room)
        return pump_fail(answer, -EIO);
    memcpy(answer->bytes, &out, sizeof out);
    if (length != 0)
        memcpy(answer->bytes + sizeof out, bytes, length);
    answer->length = sizeof out + length;
    answer->error = 0;
    return PUMP_ANSWERED;
}

static enum pump_outcome get_flags(struct pump *pump, uint64_t node, bool extended, struct pump_answer *answer)
{
    struct filesystem_attributes attributes;
    struct fsxattr extended_out = {0};
    uint32_t plain_out = 0;
    int status = filesystem_getattr(pump->filesystem, node, &attributes);
    if (status != 0)
        return pump_fail(answer, status);
    for (size_t at = 0; at < FLAG_COUNT; at++)
        if ((attributes.flags & flag_names[at].ours) != 0) {
            plain_out |= flag_names[at].plain;
            extended_out.fsx_xflags |= flag_names[at].extended;
        }
    return extended ? answer_ioctl(answer, &extended_out, sizeof extended_out)
                    : answer_ioctl(answer, &plain_out, sizeof plain_out);
}

/* The kernel has checked that the caller may. */
static enum pump_outcome set_flags(struct pump *pump, const struct pump_request *request, bool extended,
                                   struct pump_answer *answer)
{
    struct fsxattr wanted = {0};
    uint32_t plain = 0, ours = 0, known = 0;
    if (request->payload_length < (extended ? sizeof wanted : sizeof plain))
        return pump_fail(answer, -EINVAL);
    if (extended)
        memcpy(&wanted, request->payload, sizeof wanted);
    else
        memcpy(&plain, request->payload, sizeof plain);
    uint32_t given = extended ? wanted.fsx_xflags : plain;
    for (size_t at = 0; at < FLAG_COUNT; at++) {
        uint32_t bit = extended ? flag_names[at].extended : flag_names[at].plain;
        known |= bit;
        ours |= (given & bit) != 0 ? flag_names[at].ours : 0;
    }
    if ((given & ~known) != 0 || wanted.fsx_projid != 0 || wanted.fsx_extsize != 0 || wanted.fsx_cowextsize != 0)
        return pump_fail(answer, -EOPNOTSUPP);
    int status = filesystem_setflags(pump->filesystem, request->header.nodeid, ours);
    return status != 0 ? pump_fail(answer, status) : answer_ioctl(answer, NULL, 0);
}

int pump_take_snapshot(struct pump *pump, uint64_t node, const struct cowfs_snapshot *wanted)
{
    return filesystem_snapshot(pump->filesystem, node, wanted->name, (wanted->flags & COWFS_SNAPSHOT_NO_SYNC) == 0);
}

/* UTF-8 without control characters, as check_name() in snapshots.py wants it: others read names as text. */
static bool is_text(const char *name)
{
    static const uint32_t least[] = {0, 0x20, 0xa0, 0x800, 0x10000}; /* of a sequence of this length */
    const uint8_t *at = (const uint8_t *)name;
    while (*at != 0) {
        unsigned length = *at < 0x80 ? 1 : *at < 0xc0 ? 0 : *at < 0xe0 ? 2 : *at < 0xf0 ? 3 : *at < 0xf8 ? 4 : 0;
        uint32_t point = length < 2 ? *at : *at & (0x7fu >> length);
        if (length == 0)
            return false;
        for (unsigned more = 1; more < length; more++) {
            if ((at[more] & 0xc0) != 0x80)
                return false;
            point = point << 6 | (at[more] & 0x3fu);
        }
        if (point < least[length] || point == 0x7f || (point >= 0xd800 && point < 0xe000) || point > 0x10ffff)
            return false;
        at += length;
    }
    return true;
}

static bool may_be_named(uint32_t flags, uint32_t reserved, const char *name, size_t size)
{
    return (flags & ~COWFS_SNAPSHOT_NO_SYNC) == 0 && reserved == 0 && memchr(name, 0, size) != NULL && is_text(name);
}

/* The owner of the volume's root directory may, and root, as for `mkdir .cowfs/snapshot/NAME`. */
static int check_owner(struct pump *pump, const struct pump_request *request)
{
    struct filesystem_attributes root;
    uint64_t own_root = (request->header.nodeid & ~PUMP_INODE_MASK) | FILESYSTEM_ROOT_INODE;
    int status = filesystem_getattr(pump->filesystem, own_root, &root);
    return status == 0 && request->header.uid != 0 && request->header.uid != root.uid ? -EPERM : status;
}

static enum pump_outcome take_and_tell(struct pump *pump, const struct pump_request *request,
                                       struct pump_answer *answer)
{
    struct cowfs_snapshot_taken wanted;
    struct store_snapshot taken;
    if (pump->cache != NULL)
        return pump_fail(answer, -ENOTTY);
    if (request->payload_length < sizeof wanted)
        return pump_fail(answer, -EINVAL);
    memcpy(&wanted, request->payload, sizeof wanted);
    if (!may_be_named(wanted.flags, wanted.reserved, wanted.name, sizeof wanted.name))
        return pump_fail(answer, -EINVAL);
    int status = check_owner(pump, request);
    if (status == 0)
        status = filesystem_take_snapshot(pump->filesystem, request->header.nodeid, wanted.name,
                                          (wanted.flags & COWFS_SNAPSHOT_NO_SYNC) == 0, &taken);
    if (status != 0)
        return pump_fail(answer, status);
    wanted.id = taken.id;
    wanted.epoch = taken.epoch;
    wanted.created_ns = taken.created_ns;
    return answer_ioctl(answer, &wanted, sizeof wanted);
}

/* What is to be taken or destroyed, when whoever asks may. */
static int named_snapshot(struct pump *pump, const struct pump_request *request, struct cowfs_snapshot *wanted)
{
    if (request->payload_length < sizeof *wanted)
        return -EINVAL;
    memcpy(wanted, request->payload, sizeof *wanted);
    if (!may_be_named(wanted->flags, wanted->reserved, wanted->name, sizeof wanted->name))
        return -EINVAL;
    return check_owner(pump, request);
}

static enum pump_outcome destroy_snapshot(struct pump *pump, const struct pump_request *request,
                                          struct pump_answer *answer)
{
    struct cowfs_snapshot wanted;
    int status = named_snapshot(pump, request, &wanted);
    if (status == 0)
        status = filesystem_destroy_snapshot(pump->filesystem, request->header.nodeid, wanted.name,
                                             (wanted.flags & COWFS_SNAPSHOT_NO_SYNC) == 0);
    return status != 0 ? pump_fail(answer, status) : answer_ioctl(answer, NULL, 0);
}

static enum pump_outcome take_snapshot(struct pump *pump, const struct pump_request *request,
                                       struct pump_answer *answer)
{
    struct cowfs_snapshot wanted;
    int status = named_snapshot(pump, request, &wanted);
    if (status == 0 && pump->cache != NULL)
        return PUMP_SNAPSHOT;
    if (status == 0)
        status = pump_take_snapshot(pump, request->header.nodeid, &wanted);
    return status != 0 ? pump_fail(answer, status) : answer_ioctl(answer, NULL, 0);
}

PUMP_HANDLER(pump_ioctl)
{
    struct fuse_ioctl_in in;
    memcpy(&in, request->argument, sizeof in);
    if (pump_is_virtual(request->header.nodeid))
        return pump_fail(answer, -ENOTTY);
    switch (in.cmd) {
    case FS_IOC_GETFLAGS:
        return get_flags(pump, request->header.nodeid, false, answer);
    case FS_IOC_FSGETXATTR:
        return get_flags(pump, request->header.nodeid, true, answer);
    case FS_IOC_SETFLAGS:
        return set_flags(pump, request, false, answer);
    case FS_IOC_FSSETXATTR:
        return set_flags(pump, request, true, answer);
    case COWFS_IOC_SNAPSHOT:
        return take_snapshot(pump, request, answer);
    case COWFS_IOC_SNAPSHOT_TAKE:
        return take_and_tell(pump, request, answer);
    case COWFS_IOC_SNAPSHOT_DESTROY:
        return destroy_snapshot(pump, request, answer);
    default:
        return pump_fail(answer, -ENOTTY);
    }
}
