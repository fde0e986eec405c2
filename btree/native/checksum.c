/* XXH3-64 of what the store keeps: blocks and nodes of 4 KiB and more, and short records. */
#define XXH_INLINE_ALL
#include <xxhash.h>

#include "checksum.h"
#include "store.h"

/* Below it the wide instructions gain nothing. */
#define WIDE_LENGTH_MIN 1024u

uint64_t store_checksum(const void *bytes, size_t length_bytes)
{
#if defined(__x86_64__)
    if (length_bytes >= WIDE_LENGTH_MIN && __builtin_cpu_supports("avx2"))
        return checksum_wide(bytes, length_bytes);
#endif
    return XXH3_64bits(bytes, length_bytes);
}
