/* The answers of a file system that keeps names, sizes and attributes in memory and no content at all: what is left of
 * a request's cost is the kernel's FUSE, the transport and the wake-ups. */
#ifndef CEILING_MEMORY_H
#define CEILING_MEMORY_H

#include <stddef.h>
#include <stdint.h>

#include <linux/fuse.h>

enum { PAYLOAD_SIZE_BYTES_MAX = 1 << 20 };

/* A request in the parts that both transports can give. `argument` is the operation's fixed structure (none for
 * operations that carry names only), `payload` what follows it: names, or the bytes of a write. */
struct request {
    const struct fuse_in_header *header;
    const char *argument;
    size_t argument_size_bytes;
    const char *payload;
    size_t payload_size_bytes;
};

/* Where an answer goes: `bytes` has room for PAYLOAD_SIZE_BYTES_MAX. */
struct answer {
    char *bytes;
    size_t size_bytes;
    int error; /* 0 or a negative errno */
    int is_none; /* for requests that the kernel expects no answer to */
};

/* Size of the fixed structure that a request of this opcode starts with. */
size_t memory_argument_size_bytes(uint32_t opcode);

/* Makes the root directory. 0, or a negative errno. */
int memory_start(void);

/* Any thread, any number at a time. INIT is not among the requests: the transports differ there. */
void memory_answer(const struct request *request, struct answer *answer);

#endif
