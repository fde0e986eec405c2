/* Verbs over ranges of a file. */
#include "internal.h"

#include <errno.h>

int filesystem_copy_range(struct filesystem *filesystem, uint64_t node_in, uint64_t offset_in, uint64_t node_out,
                          uint64_t offset_out, uint64_t length_bytes, uint64_t *copied)
{
    (void)filesystem, (void)node_in, (void)offset_in, (void)node_out, (void)offset_out, (void)length_bytes;
    *copied = 0;
    return -EOPNOTSUPP;
}
