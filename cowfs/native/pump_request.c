/* From an opcode to its handler, and what handlers share. */
#include "pump_internal.h"

#include <errno.h>
#include <string.h>

struct operation {
    const char *name;
    pump_handler handler; /* NULL: -ENOSYS, after which the kernel mostly does not ask again */
    size_t argument_length;
};

/* SETXATTR's structure is the short one: FUSE_SETXATTR_EXT is not asked for. FLUSH and ACCESS are for the kernel to
 * leave out: a write has arrived when write(2) returns, and default_permissions checks access. */
static const struct operation operations[PUMP_OPCODE_COUNT] = {
    [FUSE_LOOKUP] = {"lookup", pump_lookup, 0},
    [FUSE_FORGET] = {"forget", pump_forget, sizeof(struct fuse_forget_in)},
    [FUSE_GETATTR] = {"getattr", pump_getattr, sizeof(struct fuse_getattr_in)},
    [FUSE_SETATTR] = {"setattr", pump_setattr, sizeof(struct fuse_setattr_in)},
    [FUSE_READLINK] = {"readlink", pump_readlink, 0},
    [FUSE_SYMLINK] = {"symlink", pump_symlink, 0},
    [FUSE_MKNOD] = {"mknod", pump_mknod, sizeof(struct fuse_mknod_in)},
    [FUSE_MKDIR] = {"mkdir", pump_mkdir, sizeof(struct fuse_mkdir_in)},
    [FUSE_UNLINK] = {"unlink", pump_unlink, 0},
    [FUSE_RMDIR] = {"rmdir", pump_rmdir, 0},
    [FUSE_RENAME] = {"rename", pump_rename, sizeof(struct fuse_rename_in)},
    [FUSE_LINK] = {"link", pump_link, sizeof(struct fuse_link_in)},
    [FUSE_OPEN] = {"open", pump_open, sizeof(struct fuse_open_in)},
    [FUSE_READ] = {"read", pump_read, sizeof(struct fuse_read_in)},
    [FUSE_WRITE] = {"write", pump_write, sizeof(struct fuse_write_in)},
    [FUSE_STATFS] = {"statfs", pump_statfs, 0},
    [FUSE_RELEASE] = {"release", pump_release, sizeof(struct fuse_release_in)},
    [FUSE_FSYNC] = {"fsync", pump_fsync, sizeof(struct fuse_fsync_in)},
    [FUSE_SETXATTR] = {"setxattr", pump_setxattr, FUSE_COMPAT_SETXATTR_IN_SIZE},
    [FUSE_GETXATTR] = {"getxattr", pump_getxattr, sizeof(struct fuse_getxattr_in)},
    [FUSE_LISTXATTR] = {"listxattr", pump_listxattr, sizeof(struct fuse_getxattr_in)},
    [FUSE_REMOVEXATTR] = {"removexattr", pump_removexattr, 0},
    [FUSE_FLUSH] = {"flush", NULL, 0},
    [FUSE_OPENDIR] = {"opendir", pump_opendir, sizeof(struct fuse_open_in)},
    [FUSE_READDIR] = {"readdir", NULL, sizeof(struct fuse_read_in)},
    [FUSE_RELEASEDIR] = {"releasedir", pump_releasedir, sizeof(struct fuse_release_in)},
    [FUSE_FSYNCDIR] = {"fsyncdir", pump_fsyncdir, sizeof(struct fuse_fsync_in)},
    [FUSE_ACCESS] = {"access", NULL, 0},
    [FUSE_CREATE] = {"create", pump_create_file, sizeof(struct fuse_create_in)},
    [FUSE_INTERRUPT] = {"interrupt", NULL, 0},
    [FUSE_DESTROY] = {"destroy", NULL, 0},
    [FUSE_IOCTL] = {"ioctl", pump_ioctl, sizeof(struct fuse_ioctl_in)},
    [FUSE_BATCH_FORGET] = {"batch_forget", pump_forget_batch, sizeof(struct fuse_batch_forget_in)},
    [FUSE_FALLOCATE] = {"fallocate", pump_fallocate, sizeof(struct fuse_fallocate_in)},
    [FUSE_READDIRPLUS] = {"readdirplus", pump_readdirplus, sizeof(struct fuse_read_in)},
    [FUSE_RENAME2] = {"rename2", pump_rename_flags, sizeof(struct fuse_rename2_in)},
    [FUSE_LSEEK] = {"lseek", pump_lseek, sizeof(struct fuse_lseek_in)},
    [FUSE_COPY_FILE_RANGE] = {"copy_file_range", pump_copy_file_range, sizeof(struct fuse_copy_file_range_in)},
    [FUSE_SYNCFS] = {"syncfs", NULL, 0},
    [FUSE_TMPFILE] = {"tmpfile", pump_tmpfile, sizeof(struct fuse_create_in)},
    [PUMP_OPCODE_STATX] = {"statx", pump_statx, sizeof(struct pump_statx_in)},
    [PUMP_OPCODE_COPY_FILE_RANGE_64] = {"copy_file_range", pump_copy_file_range_64,
                                        sizeof(struct fuse_copy_file_range_in)},
};

size_t pump_argument_length(uint32_t opcode)
{
    return opcode < PUMP_OPCODE_COUNT ? operations[opcode].argument_length : 0;
}

const char *pump_opcode_name(uint32_t opcode)
{
    return opcode < PUMP_OPCODE_COUNT ? operations[opcode].name : NULL;
}

enum pump_outcome pump_fail(struct pump_answer *answer, int error)
{
    answer->error = error;
    answer->length = 0;
    return PUMP_ANSWERED;
}

enum pump_outcome pump_succeed(struct pump_answer *answer, const void *bytes, size_t length)
{
    if (length > answer->room)
        return pump_fail(answer, -EIO);
    if (length != 0)
        memcpy(answer->bytes, bytes, length);
    answer->length = length;
    answer->error = 0;
    return PUMP_ANSWERED;
}

int pump_name(const uint8_t *bytes, size_t length, struct filesystem_name *name, size_t *used)
{
    const uint8_t *end = length == 0 ? NULL : memchr(bytes, 0, length);
    if (end == NULL)
        return -EINVAL;
    name->bytes = bytes;
    name->length = (size_t)(end - bytes);
    *used = name->length + 1;
    return 0;
}

int pump_kernel_error(struct pump *pump, uint32_t opcode, uint64_t node, int error)
{
    if (error != -EIO && error != -EUCLEAN)
        return error;
    pump_event(pump, PUMP_EVENT_ERROR, opcode, node, error);
    return -EIO; /* -EUCLEAN is no errno that read(2) has */
}

enum pump_outcome pump_handle(struct pump *pump, const struct pump_request *request, struct pump_answer *answer)
{
    uint32_t opcode = request->header.opcode;
    if (opcode >= PUMP_OPCODE_COUNT || operations[opcode].handler == NULL)
        return pump_fail(answer, opcode == FUSE_DESTROY ? 0 : -ENOSYS);
    enum pump_outcome outcome = operations[opcode].handler(pump, request, answer);
    if (outcome == PUMP_ANSWERED && answer->error != 0)
        answer->error = pump_kernel_error(pump, opcode, request->header.nodeid, answer->error);
    return outcome;
}

int pump_hand_over(struct pump *pump, enum pump_outcome outcome, const struct pump_request *request,
                   struct pump_entry *entry, uint64_t started_ns)
{
    return outcome == PUMP_SNAPSHOT ? pump_cache_snapshot(pump, request, entry, started_ns)
                                    : pump_forward_request(pump, request, entry, started_ns);
}

/* How much one fsync weighs in the smoothed duration: a sixteenth. */
#define COMMIT_SMOOTHING 16u

void pump_commit(struct pump *pump, const struct pump_request *request, struct pump_answer *answer)
{
    uint64_t started_ns = pump_now_ns(), node = request->header.nodeid;
    struct fuse_fsync_in in;
    memcpy(&in, request->argument, sizeof in);
    (void)pump_fail(answer, filesystem_fsync(pump->filesystem, node, in.fh));
    uint64_t elapsed_ns = pump_now_ns() - started_ns, smoothed_ns = atomic_load(&pump->commit_ns);
    atomic_store(&pump->commit_ns, smoothed_ns - smoothed_ns / COMMIT_SMOOTHING + elapsed_ns / COMMIT_SMOOTHING);
    if (answer->error == -EIO)
        pump_event(pump, PUMP_EVENT_ERROR, FUSE_FSYNC, node, answer->error);
}
