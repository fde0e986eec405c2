/* The two ways to the kernel. Each serves until the mount is gone and returns 0 or a negative errno. */
#ifndef CEILING_TRANSPORT_H
#define CEILING_TRANSPORT_H

#include "memory.h"

/* Protocol 7.42 (Linux 6.14), which older kernel headers do not have. */
#define CEILING_OVER_IO_URING (1ull << 41)

/* Splits what was read from /dev/fuse. 0, or -EIO for what is no request. */
int transport_split(const char *bytes, size_t size_bytes, struct request *request);

/* Answers a request that was read from `descriptor` there. */
int transport_answer(int descriptor, const struct request *request, char *room);

/* Reads and answers one request after the other; returns 0 when the mount is gone. */
int serve_device(int descriptor);

/* As many threads as asked for, each with its own clone of the descriptor. */
int serve_device_threads(int descriptor, unsigned thread_count);

/* A ring and a thread for each possible CPU; the caller's thread serves what stays on /dev/fuse. */
int serve_uring(int descriptor);

#endif
