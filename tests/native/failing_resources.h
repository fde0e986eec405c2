/* Makes what else a pump takes fail like allocations (failing_allocations.h): mappings, threads, processes, files,
 * descriptors and rings. And counts mappings, of which no sanitizer says that they are left. --wrap=NAME for each. */
#ifndef TESTS_FAILING_RESOURCES_H
#define TESTS_FAILING_RESOURCES_H

#include <errno.h>
#include <liburing.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include "failing_allocations.h"

static atomic_int mappings;

static bool fails_with(int error)
{
    bool now = fails();
    if (now)
        errno = error;
    return now;
}

void *__real_mmap(void *address, size_t length, int protection, int flags, int file, off_t offset);
int __real_munmap(void *address, size_t length);
int __real_pthread_create(pthread_t *out, const pthread_attr_t *attributes, void *(*function)(void *), void *argument);
pid_t __real_fork(void);
FILE *__real_fopen(const char *path, const char *mode);
int __real_eventfd(unsigned value, int flags);
int __real_pipe2(int ends[2], int flags);
int __real_socketpair(int domain, int type, int protocol, int ends[2]);
int __real_epoll_create1(int flags);
int __real_io_uring_queue_init_params(unsigned entries, struct io_uring *ring, struct io_uring_params *parameters);
void *__wrap_mmap(void *address, size_t length, int protection, int flags, int file, off_t offset);
int __wrap_munmap(void *address, size_t length);
int __wrap_pthread_create(pthread_t *out, const pthread_attr_t *attributes, void *(*function)(void *), void *argument);
pid_t __wrap_fork(void);
FILE *__wrap_fopen(const char *path, const char *mode);
int __wrap_eventfd(unsigned value, int flags);
int __wrap_pipe2(int ends[2], int flags);
int __wrap_socketpair(int domain, int type, int protocol, int ends[2]);
int __wrap_epoll_create1(int flags);
int __wrap_io_uring_queue_init_params(unsigned entries, struct io_uring *ring, struct io_uring_params *parameters);

void *__wrap_mmap(void *address, size_t length, int protection, int flags, int file, off_t offset)
{
    if (fails_with(ENOMEM))
        return MAP_FAILED;
    void *mapped = __real_mmap(address, length, protection, flags, file, offset);
    mappings += mapped != MAP_FAILED;
    return mapped;
}

int __wrap_munmap(void *address, size_t length)
{
    mappings--;
    return __real_munmap(address, length);
}

int __wrap_pthread_create(pthread_t *out, const pthread_attr_t *attributes, void *(*function)(void *), void *argument)
{
    return fails() ? EAGAIN : __real_pthread_create(out, attributes, function, argument);
}

pid_t __wrap_fork(void)
{
    return fails_with(ENOMEM) ? -1 : __real_fork();
}

/* There are two CPUs, on any machine. */
FILE *__wrap_fopen(const char *path, const char *mode)
{
    static char possible[] = "0-1\n";
    if (fails_with(ENOMEM))
        return NULL;
    return strstr(path, "/cpu/possible") != NULL ? fmemopen(possible, sizeof possible - 1, "r")
                                                 : __real_fopen(path, mode);
}

int __wrap_eventfd(unsigned value, int flags)
{
    return fails_with(ENOMEM) ? -1 : __real_eventfd(value, flags);
}

int __wrap_pipe2(int ends[2], int flags)
{
    return fails_with(ENFILE) ? -1 : __real_pipe2(ends, flags);
}

int __wrap_socketpair(int domain, int type, int protocol, int ends[2])
{
    return fails_with(ENFILE) ? -1 : __real_socketpair(domain, type, protocol, ends);
}

int __wrap_epoll_create1(int flags)
{
    return fails_with(ENOMEM) ? -1 : __real_epoll_create1(flags);
}

int __wrap_io_uring_queue_init_params(unsigned entries, struct io_uring *ring, struct io_uring_params *parameters)
{
    return fails() ? -ENOMEM : __real_io_uring_queue_init_params(entries, ring, parameters);
}

#endif
