/* What the kernel's include/uapi/linux/fuse.h has had since protocol 7.39 and older headers lack. */
#ifndef COWFS_PUMP_PROTOCOL_H
#define COWFS_PUMP_PROTOCOL_H

#include <stdint.h>

#include <linux/fuse.h>

/* INIT flags, of the 64 that `flags` and `flags2` make. */
#define PUMP_FLAG_OVER_IO_URING (UINT64_C(1) << 41)

enum pump_opcode {
    PUMP_OPCODE_STATX = 52,
    PUMP_OPCODE_COPY_FILE_RANGE_64 = 53,
    PUMP_OPCODE_COUNT = 64, /* those that are counted; higher ones are unknown */
};

/* 7.39. */
struct pump_statx_time {
    int64_t seconds;
    uint32_t nanoseconds;
    int32_t reserved;
};

struct pump_statx {
    uint32_t mask;
    uint32_t blksize;
    uint64_t attributes;
    uint32_t nlink;
    uint32_t uid;
    uint32_t gid;
    uint16_t mode;
    uint16_t spare0;
    uint64_t ino;
    uint64_t size;
    uint64_t blocks;
    uint64_t attributes_mask;
    struct pump_statx_time atime, btime, ctime, mtime;
    uint32_t rdev_major, rdev_minor, dev_major, dev_minor;
    uint64_t spare2[14];
};

struct pump_statx_in {
    uint32_t getattr_flags;
    uint32_t reserved;
    uint64_t fh;
    uint32_t sx_flags;
    uint32_t sx_mask;
};

struct pump_statx_out {
    uint64_t attr_valid;
    uint32_t attr_valid_nsec;
    uint32_t flags;
    uint64_t spare[2];
    struct pump_statx stat;
};
_Static_assert(sizeof(struct pump_statx) == 256 && sizeof(struct pump_statx_out) == 288, "as the kernel has them");

/* 7.45. */
struct pump_copy_file_range_out {
    uint64_t bytes_copied;
};

/* FUSE over io_uring, 7.42. */
enum pump_uring_command { PUMP_URING_REGISTER = 1, PUMP_URING_COMMIT_AND_FETCH = 2 };

struct pump_uring_state {
    uint64_t flags;
    uint64_t commit_id;
    uint32_t payload_length;
    uint32_t padding;
    uint64_t reserved;
};

struct pump_uring_header {
    char in_out[128];   /* fuse_in_header, which the answer's fuse_out_header replaces */
    char argument[128]; /* the operation's own structure */
    struct pump_uring_state state;
};

struct pump_uring_submission {
    uint64_t flags;
    uint64_t commit_id;
    uint16_t queue;
    uint8_t padding[6];
};

#endif
