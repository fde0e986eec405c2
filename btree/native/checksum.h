#ifndef BTREE_CHECKSUM_H
#define BTREE_CHECKSUM_H

#include <stddef.h>
#include <stdint.h>

#if defined(__x86_64__)
/* The same sum with AVX2, which not every processor has: half the time. */
uint64_t checksum_wide(const void *bytes, size_t length_bytes);
#endif

#endif
