/* What a fuzz target gives, and what drives it: libFuzzer (tests/fuzz/__main__.py builds with clang) or random_main.c
 * (with gcc, in the default tests). The functions' names are libFuzzer's. */
#ifndef TESTS_FUZZ_H
#define TESTS_FUZZ_H

#include <stddef.h>
#include <stdint.h>

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t length);
size_t LLVMFuzzerCustomMutator(uint8_t *bytes, size_t length, size_t length_max, unsigned random);
/* Given by whoever drives. */
size_t LLVMFuzzerMutate(uint8_t *bytes, size_t length, size_t length_max);

/* xorshift64* */
static inline uint64_t fuzz_draw(uint64_t *state, uint64_t below)
{
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    return ((*state * UINT64_C(2685821657736338717)) >> 16) % below;
}

#endif
