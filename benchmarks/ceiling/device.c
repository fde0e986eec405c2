/* /dev/fuse: a thread sleeps in read until there is a request, and writes its answer. */
#include "transport.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/uio.h>
#include <unistd.h>

enum { REQUEST_SIZE_BYTES_MAX = PAYLOAD_SIZE_BYTES_MAX + 4096 };

int transport_split(const char *bytes, size_t size_bytes, struct request *request) {
    const struct fuse_in_header *header = (const void *)bytes;
    if (size_bytes < sizeof *header || header->len != size_bytes) {
        return -EIO;
    }
    size_t rest = size_bytes - sizeof *header;
    size_t argument_size_bytes = memory_argument_size_bytes(header->opcode);
    *request = (struct request){
        .header = header,
        .argument = bytes + sizeof *header,
        .argument_size_bytes = rest < argument_size_bytes ? rest : argument_size_bytes,
    };
    request->payload = request->argument + request->argument_size_bytes;
    request->payload_size_bytes = rest - request->argument_size_bytes;
    return 0;
}

int transport_answer(int descriptor, const struct request *request, char *room) {
    struct answer answer = {.bytes = room};
    memory_answer(request, &answer);
    if (answer.is_none) {
        return 0;
    }
    struct fuse_out_header header = {.unique = request->header->unique, .error = answer.error};
    size_t size_bytes = answer.error ? 0 : answer.size_bytes;
    header.len = (uint32_t)(sizeof header + size_bytes);
    struct iovec parts[2] = {{&header, sizeof header}, {answer.bytes, size_bytes}};
    if (writev(descriptor, parts, 2) < 0 && errno != ENOENT) { /* ENOENT: interrupted meanwhile */
        return -errno;
    }
    return 0;
}

int serve_device(int descriptor) {
    int result = -ENOMEM;
    char *bytes = malloc(REQUEST_SIZE_BYTES_MAX), *room = calloc(1, PAYLOAD_SIZE_BYTES_MAX);
    if (!bytes || !room) {
        goto out;
    }
    for (;;) {
        ssize_t length = read(descriptor, bytes, REQUEST_SIZE_BYTES_MAX);
        if (length < 0) {
            if (errno == EINTR || errno == EAGAIN || errno == ENOENT) {
                continue;
            }
            result = errno == ENODEV ? 0 : -errno;
            break;
        }
        struct request request;
        result = transport_split(bytes, (size_t)length, &request);
        if (!result) {
            result = transport_answer(descriptor, &request, room);
        }
        if (result) {
            break;
        }
    }
out:
    free(bytes);
    free(room);
    return result;
}

static void *run_device_thread(void *argument) {
    int descriptor = *(int *)argument;
    intptr_t result = serve_device(descriptor);
    return (void *)result;
}

int serve_device_threads(int descriptor, unsigned thread_count) {
    int result = -ENOMEM;
    unsigned started = 0;
    pthread_t *threads = calloc(thread_count, sizeof *threads);
    int *clones = calloc(thread_count, sizeof *clones);
    if (!threads || !clones) {
        goto out;
    }
    for (; started < thread_count; started++) {
        uint32_t origin = (uint32_t)descriptor;
        clones[started] = open("/dev/fuse", O_RDWR | O_CLOEXEC);
        if (clones[started] < 0 || ioctl(clones[started], FUSE_DEV_IOC_CLONE, &origin) < 0) {
            result = -errno;
            goto out;
        }
        int error = pthread_create(&threads[started], NULL, run_device_thread, &clones[started]);
        if (error) {
            result = -error;
            goto out;
        }
    }
    result = serve_device(descriptor);
    for (unsigned i = 0; i < started; i++) {
        void *ended;
        pthread_join(threads[i], &ended);
        result = result ? result : (int)(intptr_t)ended;
    }
out:
    /* After a failure the process ends, and the threads with it. */
    free(threads);
    free(clones);
    return result;
}
