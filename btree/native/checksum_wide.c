/* XXH3-64 compiled for AVX2, in a file of its own because the header chooses its instructions once per file. */
#include "checksum.h"

#if defined(__x86_64__)

#pragma GCC target("avx2")
#define XXH_INLINE_ALL
#define XXH_VECTOR XXH_AVX2
#include <xxhash.h>

uint64_t checksum_wide(const void *bytes, size_t length_bytes)
{
    return XXH3_64bits(bytes, length_bytes);
}

#endif
