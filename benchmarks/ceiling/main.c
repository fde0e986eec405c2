/* ceiling uring|device DIRECTORY: mounts a file system that does nothing and serves it in the foreground until it is
 * unmounted. Prints "ready" when the mount answers. It bounds what any FUSE file system can do on a machine. */
#include "transport.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/uio.h>
#include <unistd.h>

enum {
    PROTOCOL_MINOR = 42,
    BACKGROUND_MAX = 256,
    DEVICE_THREADS = 4, /* beyond the one that serves in any case: as many as fio has jobs */
};

static const uint64_t WANTED = FUSE_ASYNC_READ | FUSE_BIG_WRITES | FUSE_PARALLEL_DIROPS | FUSE_ASYNC_DIO |
                               FUSE_HANDLE_KILLPRIV_V2 | FUSE_MAX_PAGES | FUSE_NO_OPEN_SUPPORT |
                               FUSE_NO_OPENDIR_SUPPORT | FUSE_EXPLICIT_INVAL_DATA | FUSE_CACHE_SYMLINKS |
                               FUSE_INIT_EXT;

static int mount_at(const char *directory, int descriptor) {
    char options[200];
    snprintf(options, sizeof options, "fd=%d,rootmode=40000,user_id=0,group_id=0,default_permissions,allow_other",
             descriptor);
    return mount("ceiling", directory, "fuse.ceiling", MS_NOSUID | MS_NODEV, options) < 0 ? -errno : 0;
}

/* INIT always comes over /dev/fuse. */
static int greet(int descriptor, int wants_uring) {
    char bytes[FUSE_MIN_READ_BUFFER];
    ssize_t length = read(descriptor, bytes, sizeof bytes);
    if (length < 0) {
        return -errno;
    }
    const struct fuse_in_header *header = (const void *)bytes;
    const struct fuse_init_in *in = (const void *)(bytes + sizeof *header);
    if ((size_t)length < sizeof *header + sizeof *in || header->opcode != FUSE_INIT) {
        return -EPROTO;
    }
    uint64_t offered = in->flags | (uint64_t)in->flags2 << 32;
    uint64_t flags = WANTED & offered;
    if (wants_uring) {
        if (!(offered & CEILING_OVER_IO_URING)) {
            fprintf(stderr, "ceiling: the kernel does not offer FUSE over io_uring\n");
            return -EOPNOTSUPP;
        }
        flags |= CEILING_OVER_IO_URING;
    }
    struct fuse_init_out out = {
        .major = FUSE_KERNEL_VERSION, .minor = PROTOCOL_MINOR, .max_readahead = in->max_readahead,
        .flags = (uint32_t)flags, .flags2 = (uint32_t)(flags >> 32), .max_background = BACKGROUND_MAX,
        .congestion_threshold = BACKGROUND_MAX * 3 / 4, .max_write = PAYLOAD_SIZE_BYTES_MAX, .time_gran = 1,
        .max_pages = PAYLOAD_SIZE_BYTES_MAX / 4096,
    };
    struct fuse_out_header reply = {.len = sizeof reply + sizeof out, .unique = header->unique};
    struct iovec parts[2] = {{&reply, sizeof reply}, {&out, sizeof out}};
    return writev(descriptor, parts, 2) < 0 ? -errno : 0;
}

/* As long as this process runs idle CPUs poll instead of halting, as cowfs lets them. */
static void keep_cpus_awake(void) {
    const int32_t none_us = 0;
    int descriptor = open("/dev/cpu_dma_latency", O_WRONLY | O_CLOEXEC);
    if (descriptor < 0 || write(descriptor, &none_us, sizeof none_us) != (ssize_t)sizeof none_us) {
        fprintf(stderr, "ceiling: CPUs may halt in between: %s\n", strerror(errno));
    }
}

int main(int count, char **words) {
    int wants_uring = count == 3 && strcmp(words[1], "uring") == 0;
    if (count != 3 || (!wants_uring && strcmp(words[1], "device") != 0)) {
        fprintf(stderr, "usage: ceiling uring|device DIRECTORY\n");
        return 2;
    }
    signal(SIGPIPE, SIG_IGN);
    keep_cpus_awake();
    int descriptor = open("/dev/fuse", O_RDWR | O_CLOEXEC);
    int error = descriptor < 0 ? -errno : memory_start();
    if (!error) {
        error = mount_at(words[2], descriptor);
    }
    if (!error) {
        error = greet(descriptor, wants_uring);
        if (error) {
            umount2(words[2], MNT_DETACH);
        }
    }
    if (!error) {
        puts("ready");
        fflush(stdout);
        error = wants_uring ? serve_uring(descriptor) : serve_device_threads(descriptor, DEVICE_THREADS);
    }
    if (error) {
        fprintf(stderr, "ceiling: %s\n", strerror(-error));
        return 1;
    }
    return 0;
}
