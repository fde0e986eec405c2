/* One lock guards names; sizes are atomic, so that reads, writes and getattr take none. */
#include "memory.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>

enum {
    NODES_MAX = 1 << 23,
    BUCKET_COUNT = 1 << 20,
    NAME_SIZE_BYTES_MAX = 255,
    BLOCK_SIZE_BYTES = 4096,
    VALID_S = 3600,
};

struct node {
    char *name;
    char *target; /* of a symbolic link */
    _Atomic uint64_t size_bytes;
    uint64_t modified_ns;
    uint64_t lookup_count;
    uint64_t generation;
    uint64_t sequence; /* position among its siblings: the offset that readdir goes on from */
    uint64_t children_made; /* sequence of the youngest child */
    uint32_t parent;
    uint32_t next_in_bucket; /* and in the list of free nodes */
    uint32_t first_child, last_child, next_sibling, previous_sibling;
    uint32_t mode, uid, gid, link_count;
};

static struct node *nodes; /* by node id; 0 is nobody */
static uint32_t nodes_made = FUSE_ROOT_ID;
static uint32_t free_node;
static uint32_t buckets[BUCKET_COUNT];
static pthread_mutex_t names = PTHREAD_MUTEX_INITIALIZER;

static uint64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME_COARSE, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

int memory_start(void) {
    void *room = mmap(NULL, sizeof(struct node) * NODES_MAX, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (room == MAP_FAILED) {
        return -errno;
    }
    nodes = room;
    nodes[FUSE_ROOT_ID] = (struct node){.mode = S_IFDIR | 0755, .link_count = 2, .lookup_count = 1,
                                        .modified_ns = now_ns()};
    return 0;
}

size_t memory_argument_size_bytes(uint32_t opcode) {
    switch (opcode) {
    case FUSE_LOOKUP:
    case FUSE_UNLINK:
    case FUSE_RMDIR:
    case FUSE_SYMLINK:
    case FUSE_READLINK:
    case FUSE_STATFS:
    case FUSE_DESTROY:
        return 0;
    case FUSE_MKDIR:
        return sizeof(struct fuse_mkdir_in);
    case FUSE_MKNOD:
        return sizeof(struct fuse_mknod_in);
    case FUSE_CREATE:
        return sizeof(struct fuse_create_in);
    case FUSE_RENAME:
        return sizeof(struct fuse_rename_in);
    case FUSE_RENAME2:
        return sizeof(struct fuse_rename2_in);
    case FUSE_SETATTR:
        return sizeof(struct fuse_setattr_in);
    case FUSE_READ:
    case FUSE_READDIR:
        return sizeof(struct fuse_read_in);
    case FUSE_WRITE:
        return sizeof(struct fuse_write_in);
    case FUSE_FORGET:
        return sizeof(struct fuse_forget_in);
    case FUSE_BATCH_FORGET:
        return sizeof(struct fuse_batch_forget_in);
    default:
        return 0;
    }
}

/* ---- names; all of it under the lock */

static uint32_t *bucket_of(uint32_t parent, const char *name) {
    uint64_t hash = 0xcbf29ce484222325u ^ parent;
    for (; *name; name++) {
        hash = (hash ^ (unsigned char)*name) * 0x100000001b3u;
    }
    return &buckets[(hash ^ hash >> 32) % BUCKET_COUNT];
}

static uint32_t find(uint32_t parent, const char *name) {
    uint32_t found = *bucket_of(parent, name);
    while (found && (nodes[found].parent != parent || strcmp(nodes[found].name, name) != 0)) {
        found = nodes[found].next_in_bucket;
    }
    return found;
}

/* 0 when there is no memory or no node left. */
static uint32_t attach(uint32_t parent, const char *name, uint32_t child) {
    char *copy = strdup(name);
    if (!copy) {
        return 0;
    }
    struct node *node = &nodes[child], *above = &nodes[parent];
    uint32_t *bucket = bucket_of(parent, name);
    free(node->name);
    node->name = copy;
    node->parent = parent;
    node->next_in_bucket = *bucket;
    *bucket = child;
    node->sequence = ++above->children_made;
    node->next_sibling = 0;
    node->previous_sibling = above->last_child;
    if (above->last_child) {
        nodes[above->last_child].next_sibling = child;
    } else {
        above->first_child = child;
    }
    above->last_child = child;
    return child;
}

static void detach(uint32_t child) {
    struct node *node = &nodes[child], *above = &nodes[node->parent];
    uint32_t *link = bucket_of(node->parent, node->name);
    while (*link != child) {
        link = &nodes[*link].next_in_bucket;
    }
    *link = node->next_in_bucket;
    *(node->previous_sibling ? &nodes[node->previous_sibling].next_sibling : &above->first_child) = node->next_sibling;
    *(node->next_sibling ? &nodes[node->next_sibling].previous_sibling : &above->last_child) = node->previous_sibling;
    node->parent = 0;
}

static void free_if_unused(uint32_t index) {
    struct node *node = &nodes[index];
    if (node->link_count > 0 || node->lookup_count > 0 || index == FUSE_ROOT_ID) {
        return;
    }
    free(node->name);
    free(node->target);
    *node = (struct node){.generation = node->generation + 1, .next_in_bucket = free_node};
    free_node = index;
}

static uint32_t make_node(uint32_t parent, const char *name, uint32_t mode, const struct fuse_in_header *header) {
    uint32_t index = free_node;
    if (index) {
        free_node = nodes[index].next_in_bucket;
    } else if (nodes_made + 1 < NODES_MAX) {
        index = ++nodes_made;
    } else {
        return 0;
    }
    uint64_t generation = nodes[index].generation;
    nodes[index] = (struct node){.mode = mode, .uid = header->uid, .gid = header->gid, .generation = generation,
                                 .link_count = S_ISDIR(mode) ? 2 : 1, .modified_ns = now_ns()};
    if (!attach(parent, name, index)) {
        nodes[index].link_count = 0;
        free_if_unused(index);
        return 0;
    }
    return index;
}

static int remove_name(uint32_t parent, const char *name, int is_directory) {
    uint32_t found = find(parent, name);
    if (!found) {
        return -ENOENT;
    }
    if (S_ISDIR(nodes[found].mode) != is_directory) {
        return is_directory ? -ENOTDIR : -EISDIR;
    }
    if (nodes[found].first_child) {
        return -ENOTEMPTY;
    }
    detach(found);
    nodes[found].link_count = 0;
    free_if_unused(found);
    return 0;
}

static int rename_name(uint32_t parent, uint32_t new_parent, const char *name, const char *new_name, uint32_t flags) {
    uint32_t moved = find(parent, name), there = find(new_parent, new_name);
    if (!moved) {
        return -ENOENT;
    }
    if (flags) {
        return -EINVAL;
    }
    if (there == moved) {
        return 0;
    }
    if (there) {
        int error = remove_name(new_parent, new_name, S_ISDIR(nodes[moved].mode));
        if (error) {
            return error;
        }
    }
    detach(moved);
    return attach(new_parent, new_name, moved) ? 0 : -ENOMEM;
}

static void forget(uint64_t index, uint64_t count) {
    if (index > FUSE_ROOT_ID && index <= nodes_made) {
        struct node *node = &nodes[index];
        node->lookup_count -= count < node->lookup_count ? count : node->lookup_count;
        free_if_unused((uint32_t)index);
    }
}

/* ---- answers */

static void put_attributes(uint32_t index, struct fuse_attr *attributes) {
    const struct node *node = &nodes[index];
    uint64_t seconds = node->modified_ns / 1000000000u;
    uint32_t nanoseconds = (uint32_t)(node->modified_ns % 1000000000u);
    *attributes = (struct fuse_attr){
        .ino = index, .size = node->size_bytes, .blocks = (node->size_bytes + 511) / 512,
        .atime = seconds, .mtime = seconds, .ctime = seconds,
        .atimensec = nanoseconds, .mtimensec = nanoseconds, .ctimensec = nanoseconds,
        .mode = node->mode, .nlink = node->link_count, .uid = node->uid, .gid = node->gid,
        .blksize = BLOCK_SIZE_BYTES,
    };
}

static void answer_entry(struct answer *answer, uint32_t index) {
    struct fuse_entry_out entry = {.entry_valid = VALID_S, .attr_valid = VALID_S};
    if (!index) {
        answer->error = -ENOMEM;
        return;
    }
    nodes[index].lookup_count++;
    entry.nodeid = index;
    entry.generation = nodes[index].generation;
    put_attributes(index, &entry.attr);
    memcpy(answer->bytes, &entry, sizeof entry);
    answer->size_bytes = sizeof entry;
}

static void answer_lookup(const struct request *request, struct answer *answer) {
    uint32_t found = find((uint32_t)request->header->nodeid, request->payload);
    if (found) {
        answer_entry(answer, found);
        return;
    }
    /* Node id 0 with a validity: the kernel remembers that there is nothing. */
    struct fuse_entry_out nothing = {.entry_valid = VALID_S};
    memcpy(answer->bytes, &nothing, sizeof nothing);
    answer->size_bytes = sizeof nothing;
}

static void answer_attributes(struct answer *answer, uint32_t index) {
    struct fuse_attr_out out = {.attr_valid = VALID_S};
    put_attributes(index, &out.attr);
    memcpy(answer->bytes, &out, sizeof out);
    answer->size_bytes = sizeof out;
}

static void set_attributes(const struct fuse_setattr_in *in, uint32_t index) {
    struct node *node = &nodes[index];
    if (in->valid & FATTR_SIZE) {
        node->size_bytes = in->size;
    }
    if (in->valid & FATTR_MODE) {
        node->mode = (node->mode & S_IFMT) | (in->mode & ~(uint32_t)S_IFMT);
    }
    if (in->valid & FATTR_UID) {
        node->uid = in->uid;
    }
    if (in->valid & FATTR_GID) {
        node->gid = in->gid;
    }
    if (in->valid & FATTR_MTIME_NOW) {
        node->modified_ns = now_ns();
    } else if (in->valid & FATTR_MTIME) {
        node->modified_ns = in->mtime * 1000000000u + in->mtimensec;
    }
}

static void answer_create(const struct request *request, struct answer *answer, uint32_t mode) {
    uint32_t parent = (uint32_t)request->header->nodeid;
    if (find(parent, request->payload)) {
        answer->error = -EEXIST;
        return;
    }
    uint32_t made = make_node(parent, request->payload, mode, request->header);
    /* The answer may take the place of the request's names: what is needed of them is taken before. */
    if (request->header->opcode == FUSE_SYMLINK && made) {
        const char *target = request->payload + strlen(request->payload) + 1;
        nodes[made].target = strdup(target);
        nodes[made].size_bytes = strlen(target);
    }
    answer_entry(answer, made);
    if (request->header->opcode == FUSE_CREATE && made) {
        struct fuse_open_out opened = {.open_flags = FOPEN_KEEP_CACHE};
        memcpy(answer->bytes + answer->size_bytes, &opened, sizeof opened);
        answer->size_bytes += sizeof opened;
    }
}

static void answer_readdir(const struct fuse_read_in *in, uint32_t index, struct answer *answer) {
    uint32_t child = nodes[index].first_child;
    size_t room = in->size < PAYLOAD_SIZE_BYTES_MAX ? in->size : PAYLOAD_SIZE_BYTES_MAX;
    while (child && nodes[child].sequence <= in->offset) {
        child = nodes[child].next_sibling;
    }
    for (; child; child = nodes[child].next_sibling) {
        size_t name_size_bytes = strlen(nodes[child].name);
        size_t size_bytes = FUSE_DIRENT_ALIGN(FUSE_NAME_OFFSET + name_size_bytes);
        if (answer->size_bytes + size_bytes > room) {
            return;
        }
        struct fuse_dirent entry = {.ino = child, .off = nodes[child].sequence, .namelen = (uint32_t)name_size_bytes,
                                    .type = nodes[child].mode >> 12};
        char *at = answer->bytes + answer->size_bytes;
        memset(at, 0, size_bytes);
        memcpy(at, &entry, FUSE_NAME_OFFSET);
        memcpy(at + FUSE_NAME_OFFSET, nodes[child].name, name_size_bytes);
        answer->size_bytes += size_bytes;
    }
}

static void answer_read(const struct fuse_read_in *in, uint32_t index, struct answer *answer) {
    uint64_t size_bytes = nodes[index].size_bytes;
    uint64_t left = in->offset < size_bytes ? size_bytes - in->offset : 0;
    uint64_t wanted = in->size < PAYLOAD_SIZE_BYTES_MAX ? in->size : PAYLOAD_SIZE_BYTES_MAX;
    /* The content is what the buffer happens to hold. */
    answer->size_bytes = wanted < left ? wanted : left;
}

static void answer_write(const struct fuse_write_in *in, uint32_t index, struct answer *answer) {
    uint64_t end = in->offset + in->size, size_bytes = nodes[index].size_bytes;
    while (size_bytes < end && !atomic_compare_exchange_weak(&nodes[index].size_bytes, &size_bytes, end)) {
    }
    struct fuse_write_out out = {.size = in->size};
    memcpy(answer->bytes, &out, sizeof out);
    answer->size_bytes = sizeof out;
}

static void answer_statfs(struct answer *answer) {
    struct fuse_statfs_out out = {.st = {.blocks = 1 << 24, .bfree = 1 << 24, .bavail = 1 << 24, .files = NODES_MAX,
                                         .ffree = NODES_MAX - nodes_made, .bsize = BLOCK_SIZE_BYTES,
                                         .frsize = BLOCK_SIZE_BYTES, .namelen = NAME_SIZE_BYTES_MAX}};
    memcpy(answer->bytes, &out, sizeof out);
    answer->size_bytes = sizeof out;
}

static void forget_batch(const struct request *request) {
    const struct fuse_batch_forget_in *in = (const void *)request->argument;
    const struct fuse_forget_one *ones = (const void *)request->payload;
    for (uint32_t i = 0; i < in->count && (i + 1) * sizeof *ones <= request->payload_size_bytes; i++) {
        forget(ones[i].nodeid, ones[i].nlookup);
    }
}

/* Those that touch names. */
static void answer_locked(const struct request *request, struct answer *answer) {
    const void *argument = request->argument;
    uint32_t index = (uint32_t)request->header->nodeid;
    const char *name = request->payload;
    switch (request->header->opcode) {
    case FUSE_LOOKUP:
        answer_lookup(request, answer);
        break;
    case FUSE_FORGET:
        answer->is_none = 1;
        forget(index, ((const struct fuse_forget_in *)argument)->nlookup);
        break;
    case FUSE_BATCH_FORGET:
        answer->is_none = 1;
        forget_batch(request);
        break;
    case FUSE_CREATE:
        answer_create(request, answer, ((const struct fuse_create_in *)argument)->mode);
        break;
    case FUSE_MKNOD:
        answer_create(request, answer, ((const struct fuse_mknod_in *)argument)->mode);
        break;
    case FUSE_MKDIR:
        answer_create(request, answer, S_IFDIR | ((const struct fuse_mkdir_in *)argument)->mode);
        break;
    case FUSE_SYMLINK:
        answer_create(request, answer, S_IFLNK | 0777);
        break;
    case FUSE_UNLINK:
    case FUSE_RMDIR:
        answer->error = remove_name(index, name, request->header->opcode == FUSE_RMDIR);
        break;
    case FUSE_RENAME:
        answer->error = rename_name(index, (uint32_t)((const struct fuse_rename_in *)argument)->newdir, name,
                                    name + strlen(name) + 1, 0);
        break;
    case FUSE_RENAME2: {
        const struct fuse_rename2_in *in = argument;
        answer->error = rename_name(index, (uint32_t)in->newdir, name, name + strlen(name) + 1, in->flags);
        break;
    }
    case FUSE_SETATTR:
        set_attributes(argument, index);
        answer_attributes(answer, index);
        break;
    case FUSE_READLINK:
        if (nodes[index].target) {
            answer->size_bytes = strlen(nodes[index].target);
            memcpy(answer->bytes, nodes[index].target, answer->size_bytes);
        } else {
            answer->error = -EINVAL;
        }
        break;
    case FUSE_READDIR:
        answer_readdir(argument, index, answer);
        break;
    default:
        /* To most of these the kernel never asks again; OPEN and FLUSH are among them. */
        answer->error = -ENOSYS;
    }
}

void memory_answer(const struct request *request, struct answer *answer) {
    uint32_t index = (uint32_t)request->header->nodeid;
    answer->size_bytes = 0;
    answer->error = 0;
    answer->is_none = 0;
    if (request->argument_size_bytes < memory_argument_size_bytes(request->header->opcode) ||
        request->header->nodeid > nodes_made) {
        answer->error = -EINVAL;
        return;
    }
    switch (request->header->opcode) {
    case FUSE_GETATTR:
        answer_attributes(answer, index);
        break;
    case FUSE_READ:
        answer_read((const void *)request->argument, index, answer);
        break;
    case FUSE_WRITE:
        answer_write((const void *)request->argument, index, answer);
        break;
    case FUSE_STATFS:
        answer_statfs(answer);
        break;
    case FUSE_FSYNC:
    case FUSE_FSYNCDIR:
    case FUSE_RELEASE:
    case FUSE_RELEASEDIR:
    case FUSE_DESTROY:
        break;
    default:
        pthread_mutex_lock(&names);
        answer_locked(request, answer);
        pthread_mutex_unlock(&names);
    }
}
