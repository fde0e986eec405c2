/* Verbs over ranges of a file. */
#include "internal.h"

#include <errno.h>

int filesystem_create_unnamed(struct filesystem *filesystem, uint64_t parent,
                              const struct filesystem_creation *creation, struct filesystem_attributes *out)
{
    (void)filesystem, (void)parent, (void)creation, (void)out;
    return -EOPNOTSUPP;
}

int filesystem_setflags(struct filesystem *filesystem, uint64_t node, uint32_t flags)
{
    (void)filesystem, (void)node, (void)flags;
    return -EOPNOTSUPP;
}

int filesystem_may_open(struct filesystem *filesystem, uint64_t node, unsigned flags)
{
    (void)filesystem, (void)node, (void)flags;
    return 0;
}

int filesystem_write_flagged(struct filesystem *filesystem, uint64_t node, uint64_t offset_bytes, const void *bytes,
                             size_t length_bytes, unsigned flags)
{
    (void)flags;
    return filesystem_write(filesystem, node, offset_bytes, bytes, length_bytes);
}

int filesystem_copy_range(struct filesystem *filesystem, uint64_t node_in, uint64_t offset_in, uint64_t node_out,
                          uint64_t offset_out, uint64_t length_bytes, uint64_t *copied)
{
    (void)filesystem, (void)node_in, (void)offset_in, (void)node_out, (void)offset_out, (void)length_bytes;
    *copied = 0;
    return -EOPNOTSUPP;
}
