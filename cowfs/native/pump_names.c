/* Requests about names and directories. */
#include "pump_internal.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>

/* Entries of a listing that are asked for at once. */
#define LISTING_BATCH 32u

enum { DOT_COOKIE = 1, DOT_DOT_COOKIE = 2 };

void pump_entry(struct pump *pump, const struct filesystem_attributes *attributes, struct fuse_entry_out *out)
{
    *out = (struct fuse_entry_out){
        .nodeid = attributes->node, .entry_valid = PUMP_VALID_S, .attr_valid = pump_valid_s(pump, attributes->node)};
    pump_attributes(pump, attributes, &out->attr);
}

static enum pump_outcome answer_entry(struct pump *pump, int status, const struct filesystem_attributes *attributes,
                                      struct pump_answer *answer)
{
    struct fuse_entry_out out;
    if (status != 0)
        return pump_fail(answer, status);
    pump_entry(pump, attributes, &out);
    return pump_succeed(answer, &out, sizeof out);
}

static bool is_reserved(const struct pump *pump, uint64_t parent, struct filesystem_name name)
{
    return (parent & PUMP_INODE_MASK) == FILESYSTEM_ROOT_INODE && name.length == pump->reserved_length &&
           memcmp(name.bytes, pump->reserved, name.length) == 0;
}

int pump_new_name_check(const struct pump *pump, uint64_t parent, struct filesystem_name name)
{
    if (name.length > FILESYSTEM_NAME_LENGTH_MAX)
        return -ENAMETOOLONG;
    return pump_is_virtual(parent) || is_reserved(pump, parent, name) ? -EPERM : 0;
}

/* ---- looking up ------------------------------------------------------------------------------------------------ */

PUMP_HANDLER(pump_lookup)
{
    struct filesystem_attributes attributes;
    struct filesystem_name name;
    uint64_t parent = request->header.nodeid;
    size_t used;
    int status = pump_name(request->payload, request->payload_length, &name, &used);
    if (status == 0 &&
        (pump_is_virtual(parent) || (parent == FILESYSTEM_ROOT_INODE && is_reserved(pump, parent, name))))
        return PUMP_FORWARD;
    if (status == 0)
        status = filesystem_lookup(pump->filesystem, parent, name, &attributes);
    if (status == -ENOENT) {
        /* Node id 0 with a validity: the kernel remembers that there is nothing. */
        struct fuse_entry_out nothing = {.entry_valid = PUMP_VALID_S};
        return pump_succeed(answer, &nothing, sizeof nothing);
    }
    return answer_entry(pump, status, &attributes, answer);
}

/* ---- making ---------------------------------------------------------------------------------------------------- */

static enum pump_outcome make(struct pump *pump, const struct pump_request *request, struct pump_answer *answer,
                              struct filesystem_creation *creation, struct filesystem_name name)
{
    struct filesystem_attributes attributes;
    creation->uid = request->header.uid;
    creation->gid = request->header.gid;
    int status = pump_new_name_check(pump, request->header.nodeid, name);
    if (status == 0)
        status = filesystem_create(pump->filesystem, request->header.nodeid, name, creation, &attributes);
    return answer_entry(pump, status, &attributes, answer);
}

PUMP_HANDLER(pump_mknod)
{
    struct filesystem_name name;
    struct fuse_mknod_in in;
    size_t used;
    memcpy(&in, request->argument, sizeof in);
    int status = pump_name(request->payload, request->payload_length, &name, &used);
    if (status != 0)
        return pump_fail(answer, status);
    struct filesystem_creation creation = {.mode = in.mode, .rdev = in.rdev};
    return make(pump, request, answer, &creation, name);
}

PUMP_HANDLER(pump_mkdir)
{
    struct filesystem_name name;
    struct fuse_mkdir_in in;
    size_t used;
    if (pump_is_virtual(request->header.nodeid))
        return PUMP_FORWARD;
    memcpy(&in, request->argument, sizeof in);
    int status = pump_name(request->payload, request->payload_length, &name, &used);
    if (status != 0)
        return pump_fail(answer, status);
    struct filesystem_creation creation = {.mode = S_IFDIR | (in.mode & 07777u)};
    return make(pump, request, answer, &creation, name);
}

PUMP_HANDLER(pump_symlink)
{
    struct filesystem_creation creation = {.mode = S_IFLNK | 0777u};
    struct filesystem_name name;
    size_t used, target_used;
    int status = pump_name(request->payload, request->payload_length, &name, &used);
    if (status == 0)
        status = pump_name(request->payload + used, request->payload_length - used, &creation.target, &target_used);
    if (status != 0)
        return pump_fail(answer, status);
    return make(pump, request, answer, &creation, name);
}

PUMP_HANDLER(pump_link)
{
    struct filesystem_attributes attributes;
    struct filesystem_name name;
    struct fuse_link_in in;
    size_t used;
    memcpy(&in, request->argument, sizeof in);
    int status = pump_name(request->payload, request->payload_length, &name, &used);
    if (status == 0 && pump_is_virtual(in.oldnodeid))
        status = -EPERM;
    if (status == 0)
        status = pump_new_name_check(pump, request->header.nodeid, name);
    if (status == 0)
        status = filesystem_link(pump->filesystem, in.oldnodeid, request->header.nodeid, name, &attributes);
    return answer_entry(pump, status, &attributes, answer);
}

/* ---- taking away and moving ------------------------------------------------------------------------------------ */

PUMP_HANDLER(pump_unlink)
{
    struct filesystem_name name;
    size_t used;
    int status = pump_name(request->payload, request->payload_length, &name, &used);
    if (status == 0 && pump_is_virtual(request->header.nodeid))
        status = -EPERM;
    if (status == 0)
        status = filesystem_unlink(pump->filesystem, request->header.nodeid, name);
    return pump_fail(answer, status);
}

PUMP_HANDLER(pump_rmdir)
{
    struct filesystem_name name;
    uint64_t parent = request->header.nodeid;
    size_t used;
    if (pump_is_virtual(parent))
        return PUMP_FORWARD;
    int status = pump_name(request->payload, request->payload_length, &name, &used);
    if (status == 0)
        status = is_reserved(pump, parent, name) ? -EPERM : filesystem_rmdir(pump->filesystem, parent, name);
    return pump_fail(answer, status);
}

static enum pump_outcome rename_names(struct pump *pump, const struct pump_request *request, struct pump_answer *answer,
                                      uint64_t new_parent, uint32_t flags)
{
    struct filesystem_name old_name, new_name;
    uint64_t parent = request->header.nodeid;
    size_t used, new_used;
    int status = pump_name(request->payload, request->payload_length, &old_name, &used);
    if (status == 0)
        status = pump_name(request->payload + used, request->payload_length - used, &new_name, &new_used);
    if (status == 0 && (pump_is_virtual(parent) || is_reserved(pump, parent, old_name)))
        status = -EPERM;
    if (status == 0)
        status = pump_new_name_check(pump, new_parent, new_name);
    if (status == 0)
        status = filesystem_rename(pump->filesystem, parent, old_name, new_parent, new_name, flags);
    return pump_fail(answer, status);
}

PUMP_HANDLER(pump_rename)
{
    struct fuse_rename_in in;
    memcpy(&in, request->argument, sizeof in);
    return rename_names(pump, request, answer, in.newdir, 0);
}

PUMP_HANDLER(pump_rename_flags)
{
    struct fuse_rename2_in in;
    memcpy(&in, request->argument, sizeof in);
    return rename_names(pump, request, answer, in.newdir, in.flags);
}

PUMP_HANDLER(pump_readlink)
{
    size_t length = 0;
    if (pump_is_virtual(request->header.nodeid))
        return PUMP_FORWARD;
    if (answer->room < FILESYSTEM_TARGET_LENGTH_MAX)
        return pump_fail(answer, -EIO);
    int status = filesystem_readlink(pump->filesystem, request->header.nodeid, answer->bytes, &length);
    if (status != 0)
        return pump_fail(answer, status);
    answer->length = length;
    answer->error = 0;
    return PUMP_ANSWERED;
}

/* ---- directories ----------------------------------------------------------------------------------------------- */

/* The kernel keeps a listing until it changes the directory itself; nobody else does. */
PUMP_HANDLER(pump_opendir)
{
    uint64_t node = request->header.nodeid;
    if (pump_is_virtual(node))
        return PUMP_FORWARD;
    if (filesystem_is_stale(pump->filesystem, node))
        return pump_fail(answer, -ESTALE);
    struct fuse_open_out out = {.open_flags = FOPEN_KEEP_CACHE | FOPEN_CACHE_DIR};
    int status = filesystem_opened(pump->filesystem, node, &out.fh);
    if (status != 0)
        return pump_fail(answer, status);
    return pump_succeed(answer, &out, sizeof out);
}

PUMP_HANDLER(pump_releasedir)
{
    struct fuse_release_in in;
    if (pump_is_virtual(request->header.nodeid))
        return PUMP_FORWARD;
    memcpy(&in, request->argument, sizeof in);
    filesystem_closed(pump->filesystem, request->header.nodeid, in.fh);
    return pump_succeed(answer, NULL, 0);
}

PUMP_HANDLER(pump_fsyncdir)
{
    (void)pump;
    (void)answer;
    return pump_is_virtual(request->header.nodeid) ? PUMP_FORWARD : PUMP_COMMIT;
}

/* One entry; `entry` is all zeros for "." and "..", of which no lookup is counted. False: no room. */
static bool put_direntry(struct pump_answer *answer, size_t room, const struct fuse_entry_out *entry,
                         const struct fuse_dirent *head, const void *name)
{
    size_t length = FUSE_NAME_OFFSET_DIRENTPLUS + head->namelen, whole = FUSE_DIRENT_ALIGN(length);
    if (whole > room - answer->length)
        return false;
    uint8_t *at = answer->bytes + answer->length;
    memcpy(at, entry, sizeof *entry);
    memcpy(at + sizeof *entry, head, FUSE_NAME_OFFSET);
    memcpy(at + FUSE_NAME_OFFSET_DIRENTPLUS, name, head->namelen);
    memset(at + length, 0, whole - length);
    answer->length += whole;
    return true;
}

static bool put_dots(struct pump *pump, uint64_t node, uint64_t *cookie, size_t room, struct pump_answer *answer)
{
    static const char *const dots[] = {".", ".."};
    static const struct fuse_entry_out nothing = {0};
    for (; *cookie < DOT_DOT_COOKIE; (*cookie)++) {
        uint64_t shown = node;
        if (*cookie + 1 == DOT_DOT_COOKIE && filesystem_parent(pump->filesystem, node, &shown) != 0)
            shown = node; /* a directory that was removed while it is open */
        struct fuse_dirent head = {
            .ino = shown, .off = *cookie + 1, .namelen = (uint32_t)*cookie + 1, .type = S_IFDIR >> 12};
        if (!put_direntry(answer, room, &nothing, &head, dots[*cookie]))
            return false;
    }
    return true;
}

static bool put_entry(struct pump *pump, const struct filesystem_entry *entry, size_t room, struct pump_answer *answer)
{
    struct fuse_entry_out out;
    pump_entry(pump, &entry->attributes, &out);
    struct fuse_dirent head = {.ino = entry->attributes.node,
                               .off = entry->cookie,
                               .namelen = entry->name_length,
                               .type = entry->attributes.mode >> 12};
    return put_direntry(answer, room, &out, &head, entry->name);
}

PUMP_HANDLER(pump_readdirplus)
{
    struct filesystem_entry entries[LISTING_BATCH];
    uint64_t node = request->header.nodeid;
    struct fuse_read_in in;
    size_t count = 0;
    if (pump_is_virtual(node))
        return PUMP_FORWARD;
    memcpy(&in, request->argument, sizeof in);
    size_t room = in.size < answer->room ? in.size : answer->room;
    uint64_t cookie = in.offset;
    answer->length = 0;
    answer->error = 0;
    if (cookie < DOT_DOT_COOKIE && !put_dots(pump, node, &cookie, room, answer))
        return PUMP_ANSWERED;
    for (;;) {
        size_t limit = (room - answer->length) / FUSE_DIRENT_ALIGN(FUSE_NAME_OFFSET_DIRENTPLUS + 1);
        int status = filesystem_readdir(pump->filesystem, node, cookie > DOT_DOT_COOKIE ? cookie : 0,
                                        limit < LISTING_BATCH ? limit : LISTING_BATCH, true, entries, &count);
        /* The lookups of what is in the answer count: an error is for the next call. */
        if (status != 0 && answer->length == 0)
            return pump_fail(answer, status);
        if (status != 0 || count == 0)
            return PUMP_ANSWERED;
        for (size_t at = 0; at < count; at++) {
            if (put_entry(pump, &entries[at], room, answer)) {
                cookie = entries[at].cookie;
                continue;
            }
            for (; at < count; at++)
                (void)filesystem_forget(pump->filesystem, entries[at].attributes.node, 1);
            return PUMP_ANSWERED;
        }
    }
}
